package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/pushgw/pushtest"
	"github.com/parley-im/parley/pushgw/webpush"
)

func newPushCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push",
		Short: "Ring phones in a process of its own; look into push, and try it",
		Long: "Without a subcommand: take bells from a MongoDB that parley serve writes to, and ring them, until SIGTERM or\n" +
			"SIGINT. It wants the configuration of parley serve, with push.run: workers. Any number may run; what one\n" +
			"that dies had begun is rung by another. By default parley serve rings by itself, and this is not needed.",
		RunE: pushWorker,
	}
	addConfigFlags(cmd)
	return group(cmd, newPushSendCmd(), newPushExplainCmd(), newPushDeadCmd(), newPushReplayCmd(), newPushKeysCmd(), newPushSimulateCmd())
}

func pushWorker(cmd *cobra.Command, _ []string) error {
	return runProcess(cmd, app.NewPushWorker, func(_ context.Context, w *app.PushWorker) {
		ready := "parley push " + versionString() + " is ready:"
		if w.Addr() != "" {
			ready += " metrics=" + w.Addr()
		}
		fmt.Fprintln(cmd.OutOrStdout(), ready)
	})
}

// withServer calls the running server of the configuration.
func withServer(cmd *cobra.Command, fn func(context.Context, *server) error) error {
	cfg, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	srv, ok := findServer(cmd.Context(), cfg.DataDir)
	if !ok {
		return fmt.Errorf("no server runs on %s (or its HTTP listener is off)", cfg.DataDir)
	}
	return fn(cmd.Context(), srv)
}

func newPushSendCmd() *cobra.Command {
	var text string
	cmd := &cobra.Command{
		Use: "send USER DEVICE", Short: "Ring one device now and show what the provider says",
		Args: exactly(2, "name the user and the device"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withServer(cmd, func(ctx context.Context, srv *server) error {
				var out struct {
					Sent   bool
					Reason string
				}
				if err := srv.call(ctx, "POST", "/v1/admin/push/send", map[string]string{"user": args[0], "device": args[1], "text": text}, &out); err != nil {
					return err
				}
				if !out.Sent {
					return fmt.Errorf("not sent: %s", out.Reason)
				}
				fmt.Fprintln(cmd.OutOrStdout(), "the provider has it")
				return nil
			})
		},
	}
	addConfigFlags(cmd)
	cmd.Flags().StringVar(&text, "text", "", "what is shown (default: the app's own words for a new message)")
	return cmd
}

func newPushExplainCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "explain USER CONVERSATION SEQ",
		Short:   "Show why a message rang whom, step by step",
		Example: "  parley push explain alice dm/bob 17",
		Args:    exactly(3, "name a user, the conversation as that user writes it, and the seq of the message"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := strconv.ParseUint(args[2], 10, 63); err != nil {
				return usageError{fmt.Errorf("%q is no seq", args[2])}
			}
			return withServer(cmd, func(ctx context.Context, srv *server) error {
				var steps []struct {
					At          int64
					First, Last uint64
					User        string
					Device      string
					Step        string
					Go          bool
					Reason      string
					Detail      string
				}
				q := url.Values{"user": {args[0]}, "conv": {args[1]}, "seq": {args[2]}}
				if err := srv.call(ctx, "GET", "/v1/admin/push/explain?"+q.Encode(), nil, &steps); err != nil {
					return err
				}
				if len(steps) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "nothing was decided about it since the server started: nobody it is for has registered an address, or it is no message")
					return nil
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
				for _, s := range steps {
					goes := "stops"
					if s.Go {
						goes = "goes on"
					}
					whose := s.User + "/" + s.Device
					if s.User == "" { // decided for all at once
						whose = "the group"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", time.UnixMilli(s.At).Format("15:04:05.000"), whose, s.Step, goes, strings.TrimSpace(s.Reason+" "+s.Detail))
				}
				return w.Flush()
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newPushDeadCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dead", Short: "List what could not be rung", Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withServer(cmd, func(ctx context.Context, srv *server) error {
				var dead []struct {
					ID, User, Device, Conv, Provider, App, Reason string
					Last                                          uint64
				}
				if err := srv.call(ctx, "GET", "/v1/admin/push/dead", nil, &dead); err != nil {
					return err
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
				for _, l := range dead {
					fmt.Fprintf(w, "%s\t%s/%s\t%s %d\t%s %s\t%s\n", l.ID, l.User, l.Device, l.Conv, l.Last, l.Provider, l.App, l.Reason)
				}
				return w.Flush()
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newPushReplayCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "replay [ID ...]", Short: "Ring again what could not be: the letters named, or all",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withServer(cmd, func(ctx context.Context, srv *server) error {
				var out struct{ Replayed int }
				if err := srv.call(ctx, "POST", "/v1/admin/push/replay", map[string]any{"ids": args}, &out); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), "replayed:", out.Replayed)
				return nil
			})
		},
	}
	addConfigFlags(cmd)
	return cmd
}

func newPushKeysCmd() *cobra.Command {
	return &cobra.Command{
		Use: "keys FILE", Short: "Make a VAPID key for Web Push; the public half is printed, for the page",
		Args: exactly(1, "name the file for the private key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			private, public, err := webpush.GenerateVAPIDKeys()
			if err != nil {
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(f, private)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), public)
			return nil
		},
	}
}

func newPushSimulateCmd() *cobra.Command {
	var o pushtest.Options
	cmd := &cobra.Command{
		Use:   "simulate DIR",
		Short: "Run simulators of APNs, FCM and Web Push, to try without an account",
		Long: "Writes keys, a certificate and push.yaml, a configuration to copy, into DIR, and takes pushes until it is interrupted.\n" +
			"What was accepted is shown as it comes, and as JSON at /ledger of each address.",
		Args: exactly(1, "name a directory for keys and configuration"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			sim, err := pushtest.Start(o)
			if err != nil {
				return err
			}
			defer func() { _ = sim.Close() }()
			if err := sim.Save(dir); err != nil {
				return err
			}
			private, _, err := webpush.GenerateVAPIDKeys()
			if err != nil {
				return err
			}
			if err := os.WriteFile(dir+"/vapid.key", []byte(private+"\n"), 0o600); err != nil {
				return err
			}
			team, id, _ := sim.APNsKey()
			conf := fmt.Sprintf("push:\n  apps:\n"+
				"    - {name: com.example.chat, provider: apns, bundle: com.example.chat, team: %s, key_id: %s, key: %s/AuthKey_%s.p8, endpoint: %q, sandbox: %q, ca: %s/ca.pem}\n"+
				"    - {name: simulated, provider: fcm, service_account: %s/service-account.json, endpoint: %q, ca: %s/ca.pem}\n"+
				"    - {name: web, provider: webpush, key: %s/vapid.key, subject: ops@example.com, hosts: 127.0.0.1, allow_private: true, ca: %s/ca.pem}\n",
				team, id, dir, id, sim.URLs.APNs, sim.URLs.Sandbox, dir, dir, sim.URLs.FCM, dir, dir, dir)
			if err := os.WriteFile(dir+"/push.yaml", []byte(conf), 0o600); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "simulating: apns=%s sandbox=%s fcm=%s webpush=%s config=%s/push.yaml\n", sim.URLs.APNs, sim.URLs.Sandbox, sim.URLs.FCM, sim.URLs.WebPush, dir)
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return showLedger(ctx, cmd, sim)
		},
	}
	cmd.Flags().StringVar(&o.APNs, "apns", "127.0.0.1:0", "address of APNs, production")
	cmd.Flags().StringVar(&o.Sandbox, "sandbox", "127.0.0.1:0", "address of APNs, sandbox")
	cmd.Flags().StringVar(&o.FCM, "fcm", "127.0.0.1:0", "address of FCM and its token endpoint")
	cmd.Flags().StringVar(&o.WebPush, "webpush", "127.0.0.1:0", "address of the Web Push service")
	return cmd
}

// showLedger prints what comes in.
func showLedger(ctx context.Context, cmd *cobra.Command, sim *pushtest.Simulator) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	shown := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if sim.Accepted() == shown {
			continue
		}
		for _, e := range sim.Ledger() {
			if e.N > shown {
				shown = e.N
				fmt.Fprintf(cmd.OutOrStdout(), "%s %-7s %s %s\n", e.At.Format("15:04:05.000"), e.Provider, shorten(e.Token), e.Payload)
			}
		}
	}
}

func shorten(s string) string {
	if len(s) > 12 {
		return s[:12] + "…"
	}
	return s
}
