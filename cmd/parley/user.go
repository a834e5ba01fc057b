package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/auth"
	"github.com/parley-im/parley/im"
	"github.com/parley-im/parley/internal/logging"
	"github.com/parley-im/parley/store"
)

func newUserCmd() *cobra.Command {
	return group(&cobra.Command{
		Use:   "user",
		Short: "Manage accounts",
		Long:  "Works on the store itself while the server is stopped, and through the server while it runs.",
	}, newUserAddCmd(), newUserListCmd(), newUserPasswdCmd(), newUserDisableCmd(true), newUserDisableCmd(false), newUserRevokeCmd())
}

// accounts is what the user commands do, by either road.
type accounts interface {
	add(ctx context.Context, user im.UserID, password, name, role string) error
	list(ctx context.Context, each func(user im.UserID, name, role string, disabled bool)) error
	setPassword(ctx context.Context, user im.UserID, password string) error
	setDisabled(ctx context.Context, user im.UserID, disabled bool) error
	revoke(ctx context.Context, user im.UserID) error
}

// withAccounts finds the road: a running server, else the store. To change it
// this has to be the only process that does: a server keeps accounts in memory.
func withAccounts(cmd *cobra.Command, change bool, fn func(ctx context.Context, acc accounts) error) error {
	cfg, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if srv, ok := findServer(ctx, cfg.DataDir); ok {
		return fn(ctx, srv)
	}
	log := logging.New(os.Stderr, "warn", cfg.Log.Format)
	open := func() (store.Store, error) { return app.OpenStore(ctx, cfg, log) }
	if change {
		open = func() (store.Store, error) { return app.HoldStore(ctx, cfg, log, cmd.CommandPath(), false) }
	}
	st, err := open()
	switch im.CodeOf(err) {
	case "store_locked":
		return fmt.Errorf("%w (a server runs there but its HTTP listener does not answer)", err)
	case "seat_taken":
		return fmt.Errorf("%w; or run this command where that server runs, with its data_dir: it is then done through the server", err)
	}
	if err != nil {
		return err
	}
	a, err := auth.New(ctx, auth.Options{Store: st})
	if err == nil {
		err = fn(ctx, direct{st, a})
	}
	return errors.Join(err, st.Close())
}

func newUserAddCmd() *cobra.Command {
	var role, name string
	var stdin bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make an account",
		Long:  "Asks for the password on a terminal, reads it from standard input with --password-stdin, and otherwise makes one and prints it once.",
		Args:  exactly(1, "name the user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, made, err := newPassword(cmd, stdin)
			if err != nil {
				return err
			}
			if role == "user" { // as the API calls it
				role = ""
			}
			err = withAccounts(cmd, true, func(ctx context.Context, acc accounts) error {
				return acc.add(ctx, im.UserID(args[0]), password, name, role)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "user %s added\n", args[0])
			if made {
				fmt.Fprintf(cmd.OutOrStdout(), "password: %s\n", password)
			}
			return nil
		},
	}
	addConfigFlags(cmd)
	cmd.Flags().StringVar(&role, "role", "user", "user or admin")
	cmd.Flags().StringVar(&name, "name", "", "name shown to people")
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

// newPassword gets a password from where the user wants it, or makes one.
func newPassword(cmd *cobra.Command, stdin bool) (password string, made bool, err error) {
	if stdin {
		line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", false, err
		}
		return strings.TrimRight(line, "\r\n"), false, nil
	}
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		fmt.Fprint(os.Stderr, "password: ")
		one, err := term.ReadPassword(fd)
		fmt.Fprint(os.Stderr, "\nagain: ")
		two, err2 := term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
		if err := errors.Join(err, err2); err != nil {
			return "", false, err
		}
		if !bytes.Equal(one, two) {
			return "", false, errors.New("the two passwords differ")
		}
		return string(one), false, nil
	}
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:])), true, nil
}

func newUserListCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List accounts", Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAccounts(cmd, false, func(ctx context.Context, acc accounts) error {
				return acc.list(ctx, func(user im.UserID, name, role string, disabled bool) {
					state := ""
					if disabled {
						state = "disabled"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%-24s %-6s %-9s %q\n", user, role, state, name)
				})
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newUserPasswdCmd() *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use: "passwd NAME", Short: "Set a password; everything issued before is revoked", Args: exactly(1, "name the user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, made, err := newPassword(cmd, stdin)
			if err != nil {
				return err
			}
			err = withAccounts(cmd, true, func(ctx context.Context, acc accounts) error {
				return acc.setPassword(ctx, im.UserID(args[0]), password)
			})
			if err == nil && made {
				fmt.Fprintf(cmd.OutOrStdout(), "password: %s\n", password)
			}
			return err
		},
	}
	addConfigFlags(cmd)
	cmd.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

func newUserDisableCmd(disable bool) *cobra.Command {
	use, short := "enable NAME", "Let a disabled account in again"
	if disable {
		use, short = "disable NAME", "Lock an account out, at once"
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: exactly(1, "name the user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAccounts(cmd, true, func(ctx context.Context, acc accounts) error {
				return acc.setDisabled(ctx, im.UserID(args[0]), disable)
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newUserRevokeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "End everything issued to an account and disconnect it", Args: exactly(1, "name the user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAccounts(cmd, true, func(ctx context.Context, acc accounts) error { return acc.revoke(ctx, im.UserID(args[0])) })
		},
	}
	addConfigFlags(cmd)
	return cmd
}

// direct works on the store of a stopped server.
type direct struct {
	st store.Store
	a  *auth.Auth
}

func (d direct) add(ctx context.Context, user im.UserID, password, name, role string) error {
	_, err := d.a.AddUser(ctx, user, password, name, role)
	return err
}

func (d direct) list(ctx context.Context, each func(im.UserID, string, string, bool)) error {
	after := im.UserID("")
	for {
		us, err := d.st.FindUsers(ctx, "", after, 200)
		if err != nil || len(us) == 0 {
			return err
		}
		for _, u := range us {
			each(u.ID, u.Name, u.Role, u.Disabled)
		}
		after = us[len(us)-1].ID
	}
}

func (d direct) setPassword(ctx context.Context, user im.UserID, password string) error {
	return d.a.SetPassword(ctx, user, password)
}

func (d direct) setDisabled(ctx context.Context, user im.UserID, disabled bool) error {
	return d.a.SetDisabled(ctx, user, disabled)
}

func (d direct) revoke(ctx context.Context, user im.UserID) error { return d.a.Revoke(ctx, user) }
