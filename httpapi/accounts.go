package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/store"
)

// opRegister has a limit of its own.
const opRegister = "auth.register"

func (a *API) authOperations(book huma.API) {
	const tag = "login"
	denied := map[int]string{
		401: "`unauthorized`: wrong user, password or token; which is not said.",
		403: "`disabled`: the account is disabled.",
		429: "Too many failures for this account from this address, or too many requests: wait as long as Retry-After says.",
	}

	define(a, book, operation{
		id: opRegister, method: http.MethodPost, path: "/v1/register", tag: tag, public: true, status: http.StatusCreated,
		summary: "Make an account",
		refusals: map[int]string{
			403: "`registration_closed`: this server takes no new accounts this way.",
			409: "The id is taken.",
		},
	}, a.register)

	define(a, book, operation{
		id: "auth.login", method: http.MethodPost, path: "/v1/login", tag: tag, public: true, refusals: denied,
		summary: "Get tokens for a password",
		detail: "The access token is for HTTP and for CONNECT, and lives `expires_in` seconds; the refresh token gets the " +
			"next pair. With `device` both are bound to that device.",
	}, a.login)

	define(a, book, operation{
		id: "auth.refresh", method: http.MethodPost, path: "/v1/refresh", tag: tag, public: true, refusals: denied,
		summary: "Get new tokens for a refresh token",
		detail: "A refresh token works once. Within 10 seconds it may be used again, for the case that the first answer was lost; " +
			"later that is taken for theft, and all tokens of that login are revoked.",
	}, a.refresh)

	define(a, book, operation{
		id: "auth.logout", method: http.MethodPost, path: "/v1/logout", tag: tag,
		summary: "End this login",
		detail: "Revokes the access and the refresh tokens of the login and disconnects what is connected with them. Over a connection " +
			"that was made with a password it ends that connection.",
	}, a.logout)
}

type registerInput struct {
	Body struct {
		User     im.UserID `json:"user" maxLength:"64" pattern:"^[a-z0-9._-]*[a-z0-9_-][a-z0-9._-]*$" patternDescription:"a user id (a-z 0-9 . _ -, not only dots)" doc:"The id, for ever."`
		Password string    `json:"password" minLength:"8" maxLength:"256" doc:"8 to 256 bytes."`
		Name     string    `json:"name,omitempty" maxLength:"128" doc:"The name shown to people, one line of at most 128 bytes; the id if left out."`
	} `nameHint:"Register"`
}

func (a *API) register(ctx context.Context, _ Caller, in *registerInput) (*reply[profile], error) {
	if !a.opt.Registration() {
		return nil, im.Refuse(im.Forbidden, codeClosed, "this server takes no new accounts this way: ask its administrator")
	}
	u, err := a.opt.Auth.Register(ctx, in.Body.User, in.Body.Password, in.Body.Name)
	return answerWith(profile{User: u.ID, Name: u.Name}, err)
}

type loginInput struct {
	Body struct {
		User     im.UserID   `json:"user" maxLength:"64" doc:"The user's id."`
		Password string      `json:"password" maxLength:"256"`
		Device   im.DeviceID `json:"device,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9._-]*$" patternDescription:"a device id (A-Z a-z 0-9 . _ -)" doc:"The MQTT client id the tokens are for."`
	} `nameHint:"Login"`
}

type tokens struct {
	Token        string    `json:"token" doc:"The access token."`
	RefreshToken string    `json:"refresh_token" doc:"For auth.refresh, once."`
	ExpiresIn    int       `json:"expires_in" doc:"How long the access token lives, in seconds."`
	User         im.UserID `json:"user" doc:"Whose tokens these are."`
}

func tokensOf(g auth.Grant) tokens {
	return tokens{Token: g.Token, RefreshToken: g.RefreshToken, ExpiresIn: int(g.ExpiresIn.Seconds()), User: g.User}
}

func (a *API) login(ctx context.Context, _ Caller, in *loginInput) (*reply[tokens], error) {
	g, err := a.opt.Auth.Login(ctx, in.Body.User, in.Body.Password, in.Body.Device, exchangeOf(ctx).addr.String())
	return answerWith(tokensOf(g), err)
}

type refreshInput struct {
	Body struct {
		RefreshToken string `json:"refresh_token" minLength:"1" maxLength:"4096"`
	} `nameHint:"Refresh"`
}

func (a *API) refresh(ctx context.Context, _ Caller, in *refreshInput) (*reply[tokens], error) {
	g, err := a.opt.Auth.Refresh(ctx, in.Body.RefreshToken)
	return answerWith(tokensOf(g), err)
}

func (a *API) logout(ctx context.Context, c Caller, _ *none) (*none, error) {
	if c.Identity.Family == "" && c.Device != "" { // connected with a password: there are no tokens to end
		a.opt.Sessions.Leave(ctx, im.DeviceKey{User: c.User, Device: c.Device})
		return &none{}, nil
	}
	return answerNone(a.opt.Auth.Logout(ctx, c.Identity))
}

func (a *API) meOperations(book huma.API) {
	const tag = "me"

	define(a, book, operation{
		id: "me.get", method: http.MethodGet, path: "/v1/me", tag: tag,
		summary: "Show one's own account",
	}, func(ctx context.Context, c Caller, _ *none) (*reply[account], error) { return a.account(ctx, c.User) })

	define(a, book, operation{
		id: "me.update", method: http.MethodPatch, path: "/v1/me", tag: tag,
		summary: "Change one's own account",
		detail:  "Fields left out stay as they are.",
	}, a.updateMe)

	define(a, book, operation{
		id: "me.password", method: http.MethodPost, path: "/v1/me/password", tag: tag,
		summary:  "Change one's password",
		detail:   "Revokes all tokens, the caller's too, and disconnects what was connected with them or with the old password.",
		refusals: map[int]string{401: "`unauthorized`: the old password is wrong, or the token is."},
	}, a.changePassword)
}

func (a *API) account(ctx context.Context, u im.UserID) (*reply[account], error) {
	row, err := a.opt.Accounts.User(ctx, u)
	if im.Is(err, im.NotFound) {
		return nil, im.Refuse(im.NotFound, "user_not_found", "there is no such user")
	}
	return answerWith(accountOf(row), err)
}

type updateMeInput struct {
	Body struct {
		Name *string `json:"name,omitempty" maxLength:"128" doc:"The name shown to people, one line of at most 128 bytes."`
	} `nameHint:"UpdateMe"`
}

type passwordInput struct {
	Body struct {
		Old string `json:"old" maxLength:"256" doc:"The password as it is."`
		New string `json:"new" minLength:"8" maxLength:"256" doc:"The password to be: 8 to 256 bytes."`
	} `nameHint:"ChangePassword"`
}

func (a *API) userOperations(book huma.API) {
	const tag = "users"

	define(a, book, operation{
		id: "users.find", method: http.MethodGet, path: "/v1/users", tag: tag,
		summary: "Find users by the beginning of their id or name",
	}, a.findUsers)

	define(a, book, operation{
		id: "users.get", method: http.MethodGet, path: "/v1/users/{user}", tag: tag,
		summary: "Show a user", refusals: map[int]string{404: "`user_not_found`: there is no such user."},
	}, a.showUser)
}

func (a *API) updateMe(ctx context.Context, c Caller, in *updateMeInput) (*reply[account], error) {
	if in.Body.Name != nil {
		if err := a.opt.Auth.SetName(ctx, c.User, *in.Body.Name); err != nil {
			return nil, err
		}
	}
	return a.account(ctx, c.User)
}

func (a *API) changePassword(ctx context.Context, c Caller, in *passwordInput) (*none, error) {
	return answerNone(a.opt.Auth.ChangePassword(ctx, c.User, in.Body.Old, in.Body.New, exchangeOf(ctx).addr.String()))
}

func profileOf(u store.User) profile { return profile{User: u.ID, Name: u.Name} }

func (a *API) findUsers(ctx context.Context, _ Caller, in *searchInput) (*reply[[]profile], error) {
	var out []store.User
	for after := in.After; ; {
		us, err := a.opt.Accounts.FindUsers(ctx, in.Q, after, in.Limit)
		if err != nil {
			return nil, err
		}
		for _, u := range us {
			if !u.Disabled && len(out) < in.Limit {
				out = append(out, u)
			}
		}
		// A page that is short is the last one: disabled accounts must not make one.
		if len(us) < in.Limit || len(out) == in.Limit {
			return answerList(convert(out, profileOf), nil)
		}
		after = us[len(us)-1].ID
	}
}

func (a *API) showUser(ctx context.Context, _ Caller, in *UserPath) (*reply[profile], error) {
	u, err := a.opt.Accounts.User(ctx, in.User)
	if im.Is(err, im.NotFound) || (err == nil && u.Disabled) {
		return nil, im.Refuse(im.NotFound, "user_not_found", "there is no such user")
	}
	return answerWith(profileOf(u), err)
}
