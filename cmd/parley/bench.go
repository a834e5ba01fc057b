package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/parley-im/parley/internal/load"
)

const benchLong = `Put load on MQTT brokers, and check everything that arrives: what is lost, comes twice or out of order is counted, and
the exit code is 1 if anything was. Every run ends by itself; Ctrl-C ends it early and shows what there is.

A target is [NAME=]WHERE[,OPTION...], and there may be several: they are measured in turns, in the same run, and compared.

  WHERE   mqtt://HOST:PORT  or mqtts://
          self              this program, on data of its own that is removed afterwards, without limits (the default)
          exec:COMMAND      a server to start, which prints a line with mqtt=HOST:PORT when it is ready; of its arguments,
                            split at spaces, {dir} {mqtt} {http} {metrics} are replaced by a directory and addresses to listen
                            on. The path of a parley alone gets the arguments of self
  OPTION  plain             any broker but Parley: topics instead of users and conversations, and no accounts
          http=URL          Parley's API, http://HOST:8080 if left out
          metrics=URL       Parley's metrics, http://HOST:9090 if left out
          pid=N             of a server on this machine: its CPU and memory are measured
          stored=N          what its store has besides, of a Parley that the tool starts: N messages in the conversations of the
          conversations=N   scenario; N groups more of each user;
          members=N         N members of each group, of whom the others never connected
          lenient           what it loses is shown, and is no failure

At a Parley it registers throwaway users named bench-…, with passwords that nobody knows; where registration is closed, give
an administrator's token, with which they are also disabled at the end. The server's limits must allow what is
measured: start it with --limits.off, or raise limits.messages_per_second, limits.burst and limits.requests_per_second.

Latencies run from when a message was due, so a target that stalls does not hide what it kept waiting. The tool shares
the machine with what it measures if you run both there; "sent late" says how late it was itself.`

// benchOptions are the flags that all scenarios share.
type benchOptions struct {
	targets                   []string
	plain                     bool
	http, metrics, adminToken string
	pid, rounds               int
	baseline, json, protocol  string
}

func newBenchCmd() *cobra.Command {
	o := &benchOptions{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure this server, or any MQTT broker, under load",
		Long:  benchLong,
		Example: `  parley bench dm --rate 1000                          latency of this program at 1,000 messages per second
  parley bench dm --target mqtt://chat.example.org --http https://chat.example.org --for 1m
  parley bench storm --devices 2000 --target self --target old=exec:/usr/local/bin/parley --rounds 3
  parley bench group --members 1000 --target self --target mosquitto=mqtt://127.0.0.1:1884,plain
  parley bench crash --kills 50`,
	}
	f := cmd.PersistentFlags()
	f.StringArrayVarP(&o.targets, "target", "t", nil, "what to measure, repeatable (default self)")
	f.BoolVar(&o.plain, "plain", false, "the targets are not Parley")
	f.StringVar(&o.http, "http", "", "HTTP API of targets that do not say it")
	f.StringVar(&o.metrics, "metrics", "", "metrics listener of targets that do not say it")
	f.StringVar(&o.adminToken, "admin-token", "", "token of an administrator, where registration is closed; better in PARLEY_BENCH_ADMIN_TOKEN")
	f.IntVar(&o.pid, "pid", 0, "process of the target, on this machine, if there is one that does not say it")
	f.IntVar(&o.rounds, "rounds", 1, "rounds of each target; with more than one, another comes first to warm up")
	f.StringVar(&o.baseline, "baseline", "", "name of the target to compare with (default the first)")
	f.StringVar(&o.json, "json", "", "write every round's results there")
	f.StringVar(&o.protocol, "protocol", "3.1.1", "MQTT version: 3.1.1 or 5")
	complete(cmd, "protocol", "3.1.1", "5")
	complete(cmd, "target", "self", "mqtt://", "mqtts://", "exec:")
	return group(cmd, newBenchDM(o), newBenchGroup(o), newBenchReplay(o), newBenchConnect(o), newBenchStorm(o), newBenchIdle(o), newBenchStalled(o),
		newBenchWire(o), newBenchCrash(o), newBenchSuite(o))
}

// complete offers fixed values of a flag to the shell.
func complete(cmd *cobra.Command, flag string, values ...string) {
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
}

// serveArgs are those of a Parley that is started to be measured.
var serveArgs = []string{"serve", "--data-dir", "{dir}", "--mqtt.addr", "{mqtt}", "--http.addr", "{http}", "--metrics.addr", "{metrics}",
	"--registration", "open", "--limits.off=true", "--limits.group-members", "100000", "--limits.friends", "1000000", "--sessions.max-per-user", "1000000", "--log.level", "error"}

// specs reads the targets.
func (o *benchOptions) specs() ([]load.Spec, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if o.protocol != "3.1.1" && o.protocol != "5" {
		return nil, usageError{fmt.Errorf("--protocol is 3.1.1 or 5, not %q", o.protocol)}
	}
	if o.rounds < 1 {
		return nil, usageError{errors.New("--rounds is at least 1")}
	}
	targets := o.targets
	if len(targets) == 0 {
		targets = []string{"self"}
	}
	var list []load.Spec
	for _, s := range targets {
		sp, err := load.ParseSpec(s, load.Spec{Name: "parley", Command: append([]string{exe}, serveArgs...)})
		if err != nil {
			return nil, usageError{err}
		}
		sp.Plain = sp.Plain || o.plain
		sp.Grow.Put = grow
		if len(sp.Command) == 1 && !sp.Plain {
			sp.Command = append(sp.Command, serveArgs...)
		}
		if len(sp.Command) == 0 {
			sp.HTTP, sp.Metrics, sp.AdminToken = or(sp.HTTP, o.http), or(sp.Metrics, o.metrics), or(o.adminToken, os.Getenv("PARLEY_BENCH_ADMIN_TOKEN"))
			if sp.PID == 0 {
				sp.PID = o.pid
			}
		}
		if slices.ContainsFunc(list, func(other load.Spec) bool { return other.Name == sp.Name }) {
			return nil, usageError{fmt.Errorf("two targets are named %s: write NAME=... before one", sp.Name)}
		}
		list = append(list, sp)
	}
	if o.baseline != "" && !slices.ContainsFunc(list, func(sp load.Spec) bool { return sp.Name == o.baseline }) {
		return nil, usageError{fmt.Errorf("no target is named %s", o.baseline)}
	}
	return list, nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// measure runs scenarios, each against targets that are opened for it, and reports
// what came out; also what there is when it ends early.
func (o *benchOptions) measure(cmd *cobra.Command, warmUp bool, scenarios ...load.Scenario) error {
	specs, err := o.specs()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s, %d CPUs, %s\n", runtime.Version(), runtime.NumCPU(), time.Now().Format(time.DateOnly))
	var all []load.Result
	var failed error
	for _, s := range scenarios {
		rs, err := o.one(ctx, s, specs, warmUp)
		all = append(all, rs...)
		failed = errors.Join(err, load.Report(out, rs, o.baseline))
		if failed != nil {
			break
		}
	}
	if errors.Is(failed, context.Canceled) {
		failed = errors.New("interrupted")
	}
	return errors.Join(failed, o.write(all), faults(specs, all))
}

// one runs one scenario.
func (o *benchOptions) one(ctx context.Context, s load.Scenario, specs []load.Spec, warmUp bool) (rs []load.Result, err error) {
	live := newLive(os.Stderr)
	defer live.close()
	b := load.Bench{Scenario: s, Rounds: o.rounds, WarmUp: warmUp && o.rounds > 1, Progress: live.progress, Turn: live.turn}
	for _, sp := range specs {
		t, err := load.Open(ctx, sp)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, t.Close(context.WithoutCancel(ctx))) }()
		t.V5 = o.protocol == "5"
		b.Targets = append(b.Targets, t)
	}
	return b.Run(ctx)
}

func (o *benchOptions) write(rs []load.Result) error {
	if o.json == "" {
		return nil
	}
	b, err := json.MarshalIndent(rs, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(b, '\n'), 0o644)
}

// faults is an error if a target lost something that may not.
func faults(specs []load.Spec, rs []load.Result) error {
	var bad []string
	for _, sp := range specs {
		if !sp.Lenient && slices.ContainsFunc(rs, func(r load.Result) bool { return r.Target == sp.Name && r.Any() }) {
			bad = append(bad, sp.Name)
		}
	}
	if bad == nil {
		return nil
	}
	return fmt.Errorf("messages were lost, duplicated or out of order: %s", strings.Join(bad, ", "))
}

// live shows on a terminal what is being done.
type live struct {
	progress *load.Progress
	turns    chan string
	done     chan struct{}
}

func newLive(f *os.File) *live {
	l := &live{}
	if !term.IsTerminal(int(f.Fd())) {
		return l
	}
	l.progress, l.turns, l.done = &load.Progress{}, make(chan string), make(chan struct{})
	go l.show(f)
	return l
}

func (l *live) turn(t *load.Target, round int) {
	if l.turns == nil {
		return
	}
	what := fmt.Sprintf("%s, round %d", t.Name, round)
	if round == 0 {
		what = t.Name + ", warming up"
	}
	l.turns <- what
}

func (l *live) close() {
	if l.turns != nil {
		close(l.turns)
		<-l.done
	}
}

// show draws one line, until turns is closed.
func (l *live) show(w io.Writer) {
	defer close(l.done)
	const clearLine = "\r\x1b[K"
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	what := "starting"
	for {
		select {
		case s, ok := <-l.turns:
			if !ok {
				fmt.Fprint(w, clearLine)
				return
			}
			what = s
		case <-tick.C:
		}
		s := l.progress.Look()
		fmt.Fprintf(w, "%s%s: %s %d", clearLine, what, s.Phase, s.Done)
		if s.Total > 0 {
			fmt.Fprintf(w, " of %d", s.Total)
		}
		if s.So != nil {
			fmt.Fprintf(w, ", p50 %.3g ms, p99 %.3g ms, max %.3g ms", s.So.P50, s.So.P99, s.So.Max)
		}
	}
}
