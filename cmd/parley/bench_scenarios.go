package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parley-im/parley/internal/load"
)

// flowFlags are those of a scenario that sends for a while.
func flowFlags(f *pflag.FlagSet, fl *load.Flow, window int) {
	f.IntVar(&fl.Window, "window", window, "messages of each sender under way, in a closed loop")
	f.Float64Var(&fl.Rate, "rate", 0, "messages per second of all senders, in an open loop that waits for nobody; 0: closed loop")
	f.IntVar(&fl.Payload, "payload", 100, "bytes of a message")
	f.DurationVar(&fl.For, "for", 10*time.Second, "length of a round; 0: until --messages are through")
	f.DurationVar(&fl.Patience, "patience", 10*time.Second, "nothing came in for so long after the last was sent: what is missing is lost")
	f.Int64Var(&fl.Messages, "messages", 0, "messages of a round; 0: as many as --for allows")
}

func checkFlow(fl load.Flow) error {
	if fl.For <= 0 && fl.Messages <= 0 {
		return usageError{errors.New("a round needs an end: --for or --messages")}
	}
	if fl.Window < 1 || fl.Window > 65535 || fl.Rate < 0 {
		return usageError{errors.New("--window is 1 to 65535, --rate is not negative")}
	}
	return nil
}

// positive wants flags above zero.
func positive(flags map[string]int) error {
	for name, v := range flags {
		if v < 1 {
			return usageError{fmt.Errorf("--%s is at least 1", name)}
		}
	}
	return nil
}

func newBenchDM(o *benchOptions) *cobra.Command {
	var d load.DM
	cmd := &cobra.Command{
		Use:   "dm",
		Short: "Direct messages between pairs of users: rate and latency",
		Long: "Direct messages at QoS 1 between pairs of users. In a closed loop each sender has --window messages under way, which finds the\n" +
			"highest rate. With --rate messages are sent when they are due, whatever the target does, which finds the latency people see.\n" +
			"With --plain each pair has a topic of its own.",
		Example: `  parley bench dm                                     the highest rate
  parley bench dm --rate 1000 --for 1m                the latency at 1,000 messages per second
  parley bench dm --pairs 1 --window 1                the time of one message alone`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(checkFlow(d.Flow), positive(map[string]int{"pairs": d.Pairs})); err != nil {
				return err
			}
			return o.measure(cmd, true, d)
		},
	}
	cmd.Flags().IntVar(&d.Pairs, "pairs", 50, "senders, each with a receiver")
	flowFlags(cmd.Flags(), &d.Flow, 16)
	return cmd
}

func newBenchGroup(o *benchOptions) *cobra.Command {
	var g load.Group
	cmd := &cobra.Command{
		Use:   "group",
		Short: "One group: how fast a message reaches all its members",
		Long: "One member writes, --online of the others are connected and get it, the rest are away. Rates are of deliveries.\n" +
			"With --plain the group is a topic; members who are away leave a session behind.",
		Example: `  parley bench group --members 1000 --rate 20
  parley bench group --members 5000 --online 200`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(checkFlow(g.Flow), positive(map[string]int{"members": g.Members})); err != nil {
				return err
			}
			return o.measure(cmd, true, g)
		},
	}
	cmd.Flags().IntVar(&g.Members, "members", 100, "members besides the sender")
	cmd.Flags().IntVar(&g.Online, "online", 0, "members who are connected; 0: all")
	flowFlags(cmd.Flags(), &g.Flow, 4)
	return cmd
}

func newBenchReplay(o *benchOptions) *cobra.Command {
	var r load.Replay
	cmd := &cobra.Command{
		Use:     "replay",
		Short:   "Devices return to what they have missed",
		Long:    "Stores --missed messages for each of --devices that are away, lets all return at once, and times until everything is there.",
		Example: "  parley bench replay --devices 100 --missed 1000",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"devices": r.Devices, "missed": r.Missed}); err != nil {
				return err
			}
			return o.measure(cmd, true, r)
		},
	}
	cmd.Flags().IntVar(&r.Devices, "devices", 50, "devices that were away, each of another user")
	cmd.Flags().IntVar(&r.Missed, "missed", 100, "messages that each has missed")
	cmd.Flags().IntVar(&r.Payload, "payload", 100, "bytes of a message")
	return cmd
}

func newBenchConnect(o *benchOptions) *cobra.Command {
	var c load.Connect
	cmd := &cobra.Command{
		Use:   "connect",
		Short: "New connections per second, and the time to CONNACK",
		Long: "Opens connections, with clean sessions and access tokens, and closes them once they are accepted. 100 devices of 10 users return\n" +
			"in turns; with --fresh each is a device that was never seen, for which sessions.max_per_user must have room.",
		Example: "  parley bench connect --workers 50 --for 30s",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.For <= 0 && c.Connections <= 0 {
				return usageError{errors.New("a round needs an end: --for or --connections")}
			}
			if err := positive(map[string]int{"workers": c.Workers}); err != nil {
				return err
			}
			return o.measure(cmd, true, c)
		},
	}
	cmd.Flags().IntVar(&c.Workers, "workers", 16, "connections being opened at a time, up to 100")
	cmd.Flags().DurationVar(&c.For, "for", 10*time.Second, "length of a round; 0: until --connections are through")
	cmd.Flags().Int64Var(&c.Connections, "connections", 0, "connections of a round; 0: as many as --for allows")
	cmd.Flags().BoolVar(&c.Fresh, "fresh", false, "each connection is a new device")
	return cmd
}

func newBenchStorm(o *benchOptions) *cobra.Command {
	var s load.Storm
	cmd := &cobra.Command{
		Use:   "storm",
		Short: "All devices return at once, each with a message waiting",
		Long: "Lets --devices with sessions connect at the same moment, as after the restart of a server or of a network, and times until each\n" +
			"has its CONNACK and the message that waits for it; the max is when the last one had.",
		Example: "  parley bench storm --devices 5000 --per-user 2 --rounds 3",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"devices": s.Devices, "per-user": s.PerUser}); err != nil {
				return err
			}
			return o.measure(cmd, true, s)
		},
	}
	cmd.Flags().IntVar(&s.Devices, "devices", 1000, "devices that return")
	cmd.Flags().IntVar(&s.PerUser, "per-user", 10, "devices of one user; accounts take their time to make")
	cmd.Flags().IntVar(&s.Payload, "payload", 100, "bytes of the message")
	return cmd
}

func newBenchIdle(o *benchOptions) *cobra.Command {
	var d load.Idle
	cmd := &cobra.Command{
		Use:   "idle",
		Short: "Memory of a connection that does nothing",
		Long: "Holds connections open and weighs the server: its process if pid= is known, otherwise what its metrics say. A server that the tool has\n" +
			"started is restarted before, so that only connections are weighed; another one may return or take memory meanwhile.",
		Example: "  parley bench idle --connections 10000",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"connections": d.Connections, "per-user": d.PerUser}); err != nil {
				return err
			}
			return o.measure(cmd, false, d)
		},
	}
	cmd.Flags().IntVar(&d.Connections, "connections", 5000, "connections")
	cmd.Flags().IntVar(&d.PerUser, "per-user", 500, "devices of one user")
	return cmd
}

func newBenchWire(o *benchOptions) *cobra.Command {
	var w load.Wire
	cmd := &cobra.Command{
		Use:     "wire",
		Short:   "Bytes on the wire per message, in both directions",
		Long:    "Sends messages one by one and counts what goes through the sockets of the sender and the receiver, without the headers of TCP, IP and TLS.",
		Example: "  parley bench wire --payload 20 --protocol 5",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"messages": w.Messages}); err != nil {
				return err
			}
			return o.measure(cmd, false, w)
		},
	}
	cmd.Flags().IntVar(&w.Messages, "messages", 1000, "messages to count")
	cmd.Flags().IntVar(&w.Payload, "payload", 100, "bytes of a message")
	return cmd
}

func newBenchCrash(o *benchOptions) *cobra.Command {
	var c load.Crash
	var command string
	cmd := &cobra.Command{
		Use:   "crash",
		Short: "kill -9 under load, and a ledger of what was acknowledged",
		Long: "Starts a Parley, kills it again and again while users write, and starts it on its data. Then every message that was acknowledged\n" +
			"must stand in the history once, at the seq it was acknowledged with, in the order it was sent, and every conversation and every\n" +
			"device must be without a hole. It prints its seed, which decides the moments of the kills; what the machine does meanwhile\n" +
			"is not in it, so a seed repeats the kills and not always their effect.",
		Example: `  parley bench crash --kills 100
  parley bench crash --seed 4711 --server-command "bin/parley serve --data-dir {dir} --mqtt.addr {mqtt} --http.addr {http} --limits.off"`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"kills": c.Kills, "writers": c.Writers}); err != nil {
				return err
			}
			if o.rounds != 1 || len(o.targets) > 1 || len(o.targets) == 1 && command != "" {
				return usageError{errors.New("crash takes one round and one server: --server-command, or a --target that is self or exec:COMMAND")}
			}
			if command != "" {
				o.targets = []string{"parley=exec:" + command}
			}
			if c.Seed == 0 {
				c.Seed = rand.Uint64N(1 << 32)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "seed %d\n", c.Seed)
			return o.measure(cmd, false, c)
		},
	}
	cmd.Flags().StringVar(&command, "server-command", "", "the server, as in --target exec: (default this program)")
	cmd.Flags().IntVar(&c.Kills, "kills", 10, "how often to kill it")
	cmd.Flags().Uint64Var(&c.Seed, "seed", 0, "seed of a run to repeat; 0: a new one")
	cmd.Flags().IntVar(&c.Writers, "writers", 8, "users who write, each to another one")
	cmd.Flags().IntVar(&c.Payload, "payload", 100, "bytes of a message")
	return cmd
}

func newBenchStalled(o *benchOptions) *cobra.Command {
	var s load.Stalled
	cmd := &cobra.Command{
		Use:   "stalled",
		Short: "Devices that stop reading, and what the others notice of it",
		Long: "Sends large messages to a group whose --stalled devices read nothing, and direct messages to all other devices, whose latency is\n" +
			"measured: first while all read, then while those stall. The memory is the server's, for each stalled device. In the end they\n" +
			"read on, and what is missing then is lost. --for must be below the server's mqtt.write_timeout, after which it would close them.",
		Example: "  parley bench stalled --devices 10000 --stalled 1000 --rounds 3",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := positive(map[string]int{"stalled": s.Stalled, "per-user": s.PerUser, "group-payload": s.GroupPayload}); err != nil {
				return err
			}
			if s.Stalled >= s.Devices || s.Rate <= 0 || s.GroupRate <= 0 || s.For <= 0 {
				return usageError{errors.New("there must be more --devices than --stalled, and --rate, --group-rate and --for are above 0")}
			}
			return o.measure(cmd, false, s)
		},
	}
	f := cmd.Flags()
	f.IntVar(&s.Devices, "devices", 1000, "devices in all")
	f.IntVar(&s.Stalled, "stalled", 100, "of them, those that stop reading")
	f.IntVar(&s.PerUser, "per-user", 10, "devices of one user; accounts take their time to make")
	f.Float64Var(&s.GroupRate, "group-rate", 20, "messages per second to those that stall")
	f.IntVar(&s.GroupPayload, "group-payload", 4096, "bytes of a message to them")
	f.Float64Var(&s.Rate, "rate", 200, "direct messages per second to the others")
	f.IntVar(&s.Payload, "payload", 100, "bytes of a direct message")
	f.DurationVar(&s.For, "for", 10*time.Second, "length of each of the two parts")
	f.DurationVar(&s.Patience, "patience", 10*time.Second, "nothing came in for so long after the last was sent: what is missing is lost")
	return cmd
}

func newBenchSuite(o *benchOptions) *cobra.Command {
	var length time.Duration
	var only string
	cmd := &cobra.Command{
		Use:   "suite",
		Short: "The scenarios behind docs/performance.md, one after the other",
		Long:  "Runs dm, lone (one pair, one message), group and group-busy (4 and 16 messages under way), open (1,000/s), replay and idle with the parameters of docs/performance.md, each against fresh servers.",
		Example: `  parley bench suite --rounds 5 --target self --target mosquitto=mqtt://127.0.0.1:1884,plain,lenient --baseline mosquitto
  parley bench suite --only 'dm|group'`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			match, err := regexp.Compile(only)
			if err != nil {
				return usageError{err}
			}
			if length <= 0 {
				return usageError{errors.New("--for is the length of a round, above 0")}
			}
			var list []load.Scenario
			for _, s := range []struct {
				name string
				load.Scenario
			}{
				{"dm", load.DM{Pairs: 50, Flow: load.Flow{Window: 16, Payload: 100, For: length}}},
				{"lone", load.DM{Pairs: 1, Flow: load.Flow{Window: 1, Payload: 100, For: length / 2}}},
				{"group", load.Group{Members: 100, Flow: load.Flow{Window: 4, Payload: 100, For: length}}},
				{"group-busy", load.Group{Members: 100, Flow: load.Flow{Window: 16, Payload: 100, For: length}}},
				{"open", load.DM{Pairs: 50, Flow: load.Flow{Rate: 1000, Payload: 100, For: length}}},
				{"replay", load.Replay{Devices: 50, Missed: 100, Payload: 100}},
				{"idle", load.Idle{Connections: 5000}},
			} {
				if match.MatchString(s.name) {
					list = append(list, s.Scenario)
				}
			}
			return o.measure(cmd, true, list...)
		},
	}
	cmd.Flags().DurationVar(&length, "for", 4*time.Second, "length of a round")
	cmd.Flags().StringVar(&only, "only", "", "only scenarios whose name matches this regular expression")
	return cmd
}
