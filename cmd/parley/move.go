package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/internal/logging"
	"github.com/parley-im/parley/store"
)

func newExportCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write the whole store to a file, as JSON Lines",
		Long: "Writes everything, from accounts to messages, to FILE (- is standard output): to move an installation between the\n" +
			"embedded store and MongoDB, or to keep it. The servers must be stopped. FILE holds password hashes and keys:\n" +
			"it is made readable for you alone. Its last line has counts and a hash, which parley import compares.",
		Args: exactly(1, "name the file to write, or -"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			return withStore(cmd, false, func(ctx context.Context, st store.Store, progress *progress) error {
				out := io.Writer(cmd.OutOrStdout())
				var f *os.File
				if args[0] != "-" {
					if f, err = os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
						return err
					}
					out = f
				}
				sums, err := app.Export(ctx, st, out, progress.count)
				if f != nil {
					if err == nil {
						err = f.Sync()
					}
					err = errors.Join(err, f.Close())
					if err != nil { // half of it is of no use
						err = errors.Join(err, os.Remove(args[0]))
					}
				}
				progress.end()
				if err == nil {
					fmt.Fprintf(os.Stderr, "exported: %s; hash %s\n", countsOf(sums), sums.Hash)
				}
				return err
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newImportCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Read what parley export wrote into an empty store, and compare",
		Args:  exactly(1, "name the file to read, or -"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer func() { _ = f.Close() }()
				in = f
			}
			return withStore(cmd, true, func(ctx context.Context, st store.Store, progress *progress) error {
				sums, err := app.Import(ctx, st, in, progress.count)
				progress.end()
				if err == nil {
					fmt.Fprintf(os.Stderr, "imported and compared: %s; hash %s\n", countsOf(sums), sums.Hash)
				}
				return err
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

// withStore opens the store of a stopped server, for this command alone; partial:
// also one that an import left.
func withStore(cmd *cobra.Command, partial bool, fn func(context.Context, store.Store, *progress) error) error {
	cfg, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	if srv, ok := findServer(cmd.Context(), cfg.DataDir); ok {
		return fmt.Errorf("a server is running there (%s): stop it first", srv.URL)
	}
	st, err := app.HoldStore(cmd.Context(), cfg, logging.New(os.Stderr, "warn", cfg.Log.Format), cmd.CommandPath(), partial)
	if err != nil {
		return err
	}
	return errors.Join(fn(cmd.Context(), st, &progress{terminal: term.IsTerminal(int(os.Stderr.Fd()))}), st.Close())
}

// progress shows how far it is: on a terminal in place, elsewhere, as in a log, in
// a line now and then.
type progress struct {
	terminal bool
	doing    string
	n        int
	last     time.Time
}

func (p *progress) count(doing string) {
	if doing != p.doing {
		p.doing, p.n = doing, 0
		if p.last.IsZero() {
			p.last = time.Now()
		}
	}
	if p.n++; p.n%1000 != 0 {
		return
	}
	now := time.Now()
	switch since := now.Sub(p.last); {
	case p.terminal && since > 200*time.Millisecond:
		fmt.Fprintf(os.Stderr, "\r\x1b[K%d records %s", p.n, p.doing)
	case !p.terminal && since > 10*time.Second:
		fmt.Fprintf(os.Stderr, "%d records %s\n", p.n, p.doing)
	default:
		return
	}
	p.last = now
}

func (p *progress) end() {
	if p.terminal && p.n > 0 {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
