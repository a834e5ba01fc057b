// Command compare measures Parley against stock mochi-mqtt, which stores
// nothing, on one machine in one run: rounds of the one and the other alternate,
// so that the machine's moods meet both. It prints medians and their ratios.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/parley-im/parley/internal/load"
)

// scenario is anything that can be run against a target.
type scenario interface {
	Run(*load.Target) (load.Result, error)
}

func main() {
	parley := flag.String("parley", "bin/parley", "the server to measure")
	out := flag.String("out", "", "write all results there, as JSON")
	rounds := flag.Int("rounds", 5, "rounds of each target")
	seconds := flag.Float64("seconds", 4, "length of a round")
	only := flag.String("only", "", "run only scenarios whose name matches this regular expression")
	flag.Parse()
	if err := run(*parley, *out, *rounds, time.Duration(*seconds*float64(time.Second)), *only); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func run(parley, out string, rounds int, length time.Duration, only string) (err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "parley-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	mochi := filepath.Join(tmp, "stockmochi")
	if b, err := exec.Command("go", "build", "-o", mochi, "github.com/parley-im/parley/internal/load/stockmochi").CombinedOutput(); err != nil {
		return fmt.Errorf("build stockmochi: %w: %s", err, b)
	}
	list := []struct {
		name   string
		rounds int
		s      scenario
	}{
		{"dm", rounds, load.DM{Pairs: 50, Window: 16, Payload: 100, Duration: length}},
		{"lone", rounds, load.DM{Pairs: 1, Window: 1, Payload: 100, Duration: length / 2}},
		{"group100", rounds, load.Group{Members: 100, Window: 4, Payload: 100, Duration: length}},
		{"replay", rounds, load.Replay{Receivers: 50, Messages: 100, Payload: 100}},
		{"idle", 1, load.Idle{Connections: 5000}},
	}
	var all []load.Result
	fmt.Printf("%s, %d CPUs, %s\n", runtime.Version(), runtime.NumCPU(), time.Now().Format(time.DateOnly))
	for _, sc := range list {
		if !match.MatchString(sc.name) {
			continue
		}
		results, err := interleave(tmp, parley, mochi, sc.rounds, sc.s)
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		report(results)
		all = append(all, results...)
	}
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

// interleave runs the scenario against both, in turns, each server fresh for it.
func interleave(tmp, parley, mochi string, rounds int, s scenario) (all []load.Result, err error) {
	data, err := os.MkdirTemp(tmp, "data")
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--data-dir", data, "--mqtt.addr", "127.0.0.1:0", "--http.addr", "127.0.0.1:0", "--metrics.addr", "127.0.0.1:0",
		"--limits.off=true", "--log.level", "error", "--sessions.max-per-user", "100000"}
	a, stopA, err := start(parley, "parley", args...)
	if err != nil {
		return nil, err
	}
	defer func() { stopA() }()
	if p, ok := s.(interface{ Prepare(*load.Target) error }); ok {
		if err := p.Prepare(a); err != nil {
			return nil, err
		}
		stopA()
		prepared := a
		if a, stopA, err = start(parley, "parley", args...); err != nil {
			return nil, err
		}
		a.Adopt(prepared)
	}
	b, stopB, err := start(mochi, "mochi")
	if err != nil {
		return nil, err
	}
	defer stopB()
	for i := range rounds + 1 {
		for _, t := range []*load.Target{a, b} {
			r, err := s.Run(t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.Name, err)
			}
			if i > 0 || rounds == 1 { // the first round warms up
				all = append(all, r)
			}
		}
		if rounds == 1 {
			break
		}
	}
	return all, nil
}

var addr = regexp.MustCompile(`(mqtt|http)=(\S+)`)

// start runs a server and reads its addresses from the line it prints.
func start(bin, name string, args ...string) (*load.Target, func(), error) {
	cmd := exec.Command(bin, args...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	line, err := bufio.NewReader(pipe).ReadString('\n')
	t := &load.Target{Name: name, PID: cmd.Process.Pid}
	for _, m := range addr.FindAllStringSubmatch(line, -1) {
		if m[1] == "mqtt" {
			t.MQTT = m[2]
		} else {
			t.HTTP = m[2]
		}
	}
	if err != nil || t.MQTT == "" {
		stop()
		return nil, nil, fmt.Errorf("%s did not start: %q %w", name, line, err)
	}
	return t, stop, nil
}

func report(rs []load.Result) {
	by := map[string][]load.Result{}
	for _, r := range rs {
		by[r.Target] = append(by[r.Target], r)
	}
	med := func(name string, f func(load.Result) float64) float64 {
		var v []float64
		for _, r := range by[name] {
			v = append(v, f(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	fmt.Printf("\n%s\n", rs[0].Scenario)
	row := func(what, unit string, f func(load.Result) float64) {
		p, m := med("parley", f), med("mochi", f)
		if p == 0 && m == 0 {
			return
		}
		fmt.Printf("  %-22s parley %10.4g  mochi %10.4g  %-4s ratio %.2f\n", what, p, m, unit, p/m)
	}
	row("rate", "/s", func(r load.Result) float64 { return r.Rate })
	row("server CPU per message", "us", func(r load.Result) float64 { return r.CPU })
	row("ack p50", "ms", func(r load.Result) float64 { return r.AckP50 })
	row("ack p99", "ms", func(r load.Result) float64 { return r.AckP99 })
	row("delivery p50", "ms", func(r load.Result) float64 { return r.DeliverP50 })
	row("delivery p99", "ms", func(r load.Result) float64 { return r.DeliverP99 })
	row("memory per connection", "KB", func(r load.Result) float64 { return r.KB })
	for _, name := range []string{"parley", "mochi"} {
		var lost, dup, dis int64
		for _, r := range by[name] {
			lost, dup, dis = lost+r.Lost, dup+r.Duplicate, dis+r.Disorder
		}
		fmt.Printf("  %-7s lost %d, duplicated %d, out of order %d\n", name, lost, dup, dis)
	}
}
