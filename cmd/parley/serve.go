package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/parley-im/parley/app"
	"github.com/parley-im/parley/internal/logging"
)

func newServeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: "Run the server until SIGTERM or SIGINT, then drain: what was accepted is committed and clients are told.\n" +
			"It prints one line when it is ready. Every key of the configuration is also a flag and an environment\n" +
			"variable (mqtt.addr: --mqtt.addr, PARLEY_MQTT_ADDR); flag over environment over file.",
		Args: none,
		RunE: serve,
	}
	addConfigFlags(cmd)
	return cmd
}

func serve(cmd *cobra.Command, _ []string) error {
	return runProcess(cmd, app.New, func(ctx context.Context, a *app.App) {
		spareProcessor()
		go func() {
			select {
			case <-a.Ready():
				fmt.Fprintln(cmd.OutOrStdout(), readyLine(a.Addrs()))
			case <-ctx.Done():
			}
		}()
	})
}

// spareProcessor lets one goroutine more run at once than there are processors.
// The one that syncs the log keeps its place while it waits for the disk, which on
// two processors is half of the server; what has sized itself by GOMAXPROCS before
// is not meant. An operator's GOMAXPROCS is left alone.
func spareProcessor() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}

// runProcess makes a process from the configuration, lets it announce itself, and
// runs it until SIGTERM or SIGINT.
func runProcess[P interface{ Run(context.Context) error }](cmd *cobra.Command, start func(context.Context, app.Options) (P, error), announce func(context.Context, P)) error {
	cfg, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	log := logging.New(os.Stderr, cfg.Log.Level, cfg.Log.Format)
	ctx, stop := untilSignal()
	defer stop()
	p, err := start(ctx, app.Options{Config: cfg, Log: log, Version: versionString()})
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped before it began
		}
		return err
	}
	announce(ctx, p)
	return p.Run(ctx)
}

// untilSignal ends with SIGTERM or SIGINT; a second one ends the process at once.
// Whoever reads its output may go away.
func untilSignal() (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func readyLine(addrs app.Addrs) string {
	parts := []string{"parley " + versionString() + " is ready:"}
	for _, p := range []struct{ name, addr string }{{"mqtt", addrs.MQTT}, {"mqtts", addrs.MQTTS}, {"http", addrs.HTTP}, {"metrics", addrs.Metrics}} {
		if p.addr != "" {
			parts = append(parts, p.name+"="+p.addr)
		}
	}
	return strings.Join(parts, " ")
}
