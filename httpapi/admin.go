package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

func (a *API) adminOperations(book huma.API) {
	const tag = "admin: users"
	absent := map[int]string{404: "`user_not_found`: there is no such user."}

	define(a, book, operation{
		id: "admin.users.list", method: http.MethodGet, path: "/v1/admin/users", tag: tag, admin: true,
		summary: "List accounts",
		detail:  "By id. Without `q` all of them; the next page begins `after` the last id of this one.",
	}, a.listAccounts)

	define(a, book, operation{
		id: "admin.users.create", method: http.MethodPost, path: "/v1/admin/users", tag: tag, admin: true, status: http.StatusCreated,
		summary: "Make an account", refusals: map[int]string{409: "`taken`: the id is taken."},
		detail: "Works whether registration is open or not.",
	}, a.createAccount)

	define(a, book, operation{
		id: "admin.users.get", method: http.MethodGet, path: "/v1/admin/users/{user}", tag: tag, admin: true,
		summary: "Show an account", refusals: absent,
	}, func(ctx context.Context, _ Caller, in *UserPath) (*reply[account], error) {
		return a.account(ctx, in.User)
	})

	define(a, book, operation{
		id: "admin.users.update", method: http.MethodPatch, path: "/v1/admin/users/{user}", tag: tag, admin: true,
		summary: "Change an account", refusals: absent,
		detail: "Fields left out stay as they are. Disabling an account, or taking its role, revokes its tokens and disconnects it.",
	}, a.updateAccount)

	define(a, book, operation{
		id: "admin.users.disable", method: http.MethodDelete, path: "/v1/admin/users/{user}", tag: tag, admin: true,
		summary: "Disable an account", refusals: absent,
		detail: "It can no longer log in or connect and is disconnected at once. Its messages stay, its id stays taken, and " +
			"admin.users.update with `disabled: false` brings it back.",
	}, a.disableAccount)

	define(a, book, operation{
		id: "admin.users.password", method: http.MethodPost, path: "/v1/admin/users/{user}/password", tag: tag, admin: true,
		summary: "Set a user's password", refusals: absent,
		detail: "Revokes all tokens of the user and disconnects their devices.",
	}, a.setPassword)

	define(a, book, operation{
		id: "admin.users.revoke", method: http.MethodPost, path: "/v1/admin/users/{user}/revoke", tag: tag, admin: true,
		summary: "Revoke all tokens of a user", refusals: absent,
		detail: "And disconnect their devices. The password stays.",
	}, a.revokeAccount)
}

// backupOperation is beside the others about administration: what it does is done
// to the server's machine.
func (a *API) backupOperation(book huma.API) {
	define(a, book, operation{
		id: "admin.backup", method: http.MethodPost, path: "/v1/admin/backup", tag: "admin: server", admin: true, operator: true, slow: true,
		summary: "Copy the store into a directory on the server's machine",
		detail:  "The copy is consistent and of one moment. The directory must not exist.",
		refusals: map[int]string{
			403: "`operator_only`: the caller is not one of the commands on the server's machine.",
			409: "`dir_exists`: the directory exists already.",
			422: "`dir_invalid`: the directory is no absolute path. `no_backup`: this store has tools of its own.",
		},
	}, func(ctx context.Context, _ Caller, in *backupInput) (*reply[backedUp], error) {
		if a.opt.Backup == nil {
			return nil, im.Refuse(im.Unsupported, "no_backup", "this server makes no backups")
		}
		return answerWith(backedUp{in.Body.Dir}, a.opt.Backup(ctx, in.Body.Dir))
	})
}

type backupInput struct {
	Body struct {
		Dir string `json:"dir" minLength:"1" maxLength:"4096" doc:"An absolute path."`
	} `nameHint:"Backup"`
}

type backedUp struct {
	Dir string `json:"dir" doc:"Where the copy is."`
}

func accountOf(u store.User) account {
	role := u.Role
	if role == "" {
		role = "user"
	}
	return account{User: u.ID, Name: u.Name, Role: role, Disabled: u.Disabled, Created: u.Created}
}

type searchInput struct{ Search }

func (a *API) listAccounts(ctx context.Context, _ Caller, in *searchInput) (*reply[[]account], error) {
	us, err := a.opt.Accounts.FindUsers(ctx, in.Q, in.After, in.Limit)
	return answerList(convert(us, accountOf), err)
}

type createAccountInput struct {
	Body struct {
		User     im.UserID `json:"user" maxLength:"64" pattern:"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$" patternDescription:"a user id (a-z 0-9 . _ -, not only dots)" doc:"The id, for ever."`
		Password string    `json:"password" minLength:"8" maxLength:"256" doc:"8 to 256 bytes."`
		Name     string    `json:"name,omitempty" maxLength:"128" doc:"The name shown to people, one line of at most 128 bytes; the id if left out."`
		Role     string    `json:"role,omitempty" enum:"user,admin" doc:"user if left out."`
	} `nameHint:"CreateAccount"`
}

type updateAccountInput struct {
	UserPath
	Body struct {
		Name     *string `json:"name,omitempty" maxLength:"128" doc:"The name shown to people, one line of at most 128 bytes."`
		Role     *string `json:"role,omitempty" enum:"user,admin"`
		Disabled *bool   `json:"disabled,omitempty"`
	} `nameHint:"UpdateAccount"`
}

type setPasswordInput struct {
	UserPath
	Body struct {
		Password string `json:"password" minLength:"8" maxLength:"256" doc:"8 to 256 bytes."`
	} `nameHint:"SetPassword"`
}

// storedRole is a role as accounts keep it.
func storedRole(role string) string {
	if role == "user" {
		return ""
	}
	return role
}

func (a *API) createAccount(ctx context.Context, _ Caller, in *createAccountInput) (*reply[account], error) {
	u, err := a.opt.Auth.AddUser(ctx, in.Body.User, in.Body.Password, in.Body.Name, storedRole(in.Body.Role))
	return answerWith(accountOf(u), err)
}

func (a *API) updateAccount(ctx context.Context, _ Caller, in *updateAccountInput) (*reply[account], error) {
	b := in.Body
	var steps []func() error
	if b.Name != nil {
		steps = append(steps, func() error { return a.opt.Auth.SetName(ctx, in.User, *b.Name) })
	}
	if b.Role != nil {
		steps = append(steps, func() error { return a.opt.Auth.SetRole(ctx, in.User, storedRole(*b.Role)) })
	}
	if b.Disabled != nil {
		steps = append(steps, func() error { return a.opt.Auth.SetDisabled(ctx, in.User, *b.Disabled) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, absentUser(err)
		}
	}
	return a.account(ctx, in.User)
}

func absentUser(err error) error {
	if im.Is(err, im.NotFound) {
		return im.Refuse(im.NotFound, "user_not_found", "there is no such user")
	}
	return err
}

func (a *API) disableAccount(ctx context.Context, _ Caller, in *UserPath) (*none, error) {
	return answerNone(absentUser(a.opt.Auth.SetDisabled(ctx, in.User, true)))
}

func (a *API) setPassword(ctx context.Context, _ Caller, in *setPasswordInput) (*none, error) {
	return answerNone(absentUser(a.opt.Auth.SetPassword(ctx, in.User, in.Body.Password)))
}

func (a *API) revokeAccount(ctx context.Context, _ Caller, in *UserPath) (*none, error) {
	return answerNone(absentUser(a.opt.Auth.Revoke(ctx, in.User)))
}
