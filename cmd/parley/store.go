package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/configs"
	"github.com/parley-im/parley/internal/logging"
	"github.com/parley-im/parley/store"
	"github.com/parley-im/parley/store/pebblestore"
)

func newCheckCmd() *cobra.Command {
	var withStore bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, and with --store the store",
		Long: "Reports every fault of the configuration at once, each with file and line. With --store it also reads the whole store: its format, that every conversation is dense and every entry readable. " +
			"The embedded store's server must be stopped for that; one on MongoDB may run. Of MongoDB it also reports who has the database in use, the schema, indexes that are missing or wrong, whether a majority takes writes, " +
			"and warns of servers that keep less than Parley promises.",
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			for _, w := range cfg.Warnings() {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", w)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration is sound")
			if !withStore {
				return nil
			}
			if cfg.Store.Embedded() {
				return reportStore(cmd.OutOrStdout(), app.StoreDir(cfg.DataDir))
			}
			return reportDatabase(cmd, cfg)
		},
	}
	addConfigFlags(cmd)
	cmd.Flags().BoolVar(&withStore, "store", false, "check the store too")
	return cmd
}

func reportStore(w io.Writer, dir string) error {
	info, err := pebblestore.Verify(dir)
	if err != nil {
		return err
	}
	if info.Partial != "" {
		return fmt.Errorf("the store holds a part of an installation only: %s; run parley import with the same file again, or remove %s", info.Partial, dir)
	}
	fmt.Fprintf(w, "the store is sound: format %d, %s, %s, %s, %s\n", info.Format,
		plural(info.Users, "user"), plural(info.Devices, "device"), plural(info.Conversations, "conversation"), plural(info.Entries, "entry"))
	return nil
}

// reportDatabase is reportStore for MongoDB. A server may be at work meanwhile.
func reportDatabase(cmd *cobra.Command, cfg *configs.Config) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	r, err := app.Inspect(ctx, cfg)
	if err != nil {
		return err
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	for _, f := range r.Faults {
		fmt.Fprintln(out, "fault:", f)
	}
	if len(r.Faults) > 0 {
		return fmt.Errorf("the store has %s", plural(len(r.Faults), "fault"))
	}
	if r.Holder != "" {
		fmt.Fprintln(out, "in use:", r.Holder)
	}
	st, err := app.OpenStore(ctx, cfg, logging.New(os.Stderr, "warn", cfg.Log.Format))
	if err != nil {
		return err
	}
	sums, err := app.Survey(ctx, st, r.Holder != "")
	if err := errors.Join(err, st.Close()); err != nil {
		return err
	}
	fmt.Fprintln(out, "the store is sound:", countsOf(sums))
	return nil
}

func countsOf(s *app.Sums) string {
	var parts []string
	for _, kind := range []string{"user", "device", "conversation", "entry"} {
		parts = append(parts, plural(s.Counts[kind], kind))
	}
	return strings.Join(parts, ", ")
}

func newBackupCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup DIR",
		Short: "Copy the store into a new directory, while the server runs or not",
		Args:  exactly(1, "name the directory to write"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			if !cfg.Store.Embedded() {
				return errors.New("backup copies the embedded store; for MongoDB use its own tools, or parley export")
			}
			if _, err := os.Stat(dir); err == nil {
				return fmt.Errorf("%s exists already: name a new directory", dir)
			}
			ctx := cmd.Context()
			if srv, ok := findServer(ctx, cfg.DataDir); ok {
				srv.limit = 24 * time.Hour // as long as the copy takes
				if err := srv.call(ctx, "POST", "/v1/admin/backup", map[string]string{"dir": dir}, nil); err != nil {
					return err
				}
			} else {
				st, err := app.OpenStore(cmd.Context(), cfg, logging.New(os.Stderr, cfg.Log.Level, cfg.Log.Format))
				if err != nil {
					return err
				}
				err = errors.New("this store cannot copy itself")
				if cp, ok := st.(store.Checkpointer); ok {
					err = cp.Checkpoint(ctx, dir)
				}
				if err := errors.Join(err, st.Close()); err != nil {
					return err
				}
			}
			return reportStore(cmd.OutOrStdout(), dir)
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newRestoreCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore DIR",
		Short: "Put a backup into an empty data directory; the server must be stopped",
		Args:  exactly(1, "name the backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if !cfg.Store.Embedded() {
				return errors.New("restore is for the embedded store; for MongoDB use its own tools, or parley import")
			}
			to := app.StoreDir(cfg.DataDir)
			if _, err := os.Stat(to); err == nil {
				return fmt.Errorf("%s exists already: restore into an empty data directory, or move that one away", to)
			}
			if err := reportStore(io.Discard, args[0]); err != nil {
				return fmt.Errorf("the backup is not sound: %w", err)
			}
			tmp := to + ".restoring"
			if err := os.RemoveAll(tmp); err != nil {
				return err
			}
			if err := copyTree(args[0], tmp); err != nil {
				return err
			}
			if err := os.Rename(tmp, to); err != nil {
				return err
			}
			if err := syncDir(filepath.Dir(to)); err != nil {
				return err
			}
			return reportStore(cmd.OutOrStdout(), to)
		},
	}
	addConfigFlags(cmd)
	return cmd
}

// copyTree copies files and directories and syncs each.
func copyTree(from, to string) error {
	var dirs []string
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			dirs = append(dirs, target)
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
	for _, dir := range dirs { // after what they hold
		err = errors.Join(err, syncDir(dir))
	}
	return err
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}
