package load

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one figure of a report.
type row struct {
	what, unit string // a %s in what is what was counted
	of         func(Result) float64
}

// latencyRows are the figures of a distribution.
func latencyRows(what string, of func(Result) *Latency) (rows []row) {
	for _, q := range []struct {
		name string
		at   func(*Latency) float64
	}{
		{"p50", func(l *Latency) float64 { return l.P50 }},
		{"p90", func(l *Latency) float64 { return l.P90 }},
		{"p99", func(l *Latency) float64 { return l.P99 }},
		{"p99.9", func(l *Latency) float64 { return l.P999 }},
		{"max", func(l *Latency) float64 { return l.Max }},
	} {
		rows = append(rows, row{what + " " + q.name, "ms", func(r Result) float64 {
			if l := of(r); l != nil {
				return q.at(l)
			}
			return 0
		}})
	}
	return rows
}

func wireRow(what string, of func(*Bytes) float64) row {
	return row{what, "bytes", func(r Result) float64 {
		if r.Bytes == nil {
			return 0
		}
		return of(r.Bytes)
	}}
}

// rows are all figures; those that are zero everywhere are left out.
var rows = slices.Concat(
	[]row{
		{"rate", "/s", func(r Result) float64 { return r.Rate }},
		{"%s", "", func(r Result) float64 { return float64(r.Messages) }},
		{"server CPU for each", "µs", func(r Result) float64 { return r.CPU }},
	},
	latencyRows("connack", func(r Result) *Latency { return r.Connack }),
	latencyRows("first message", func(r Result) *Latency { return r.First }),
	latencyRows("caught up", func(r Result) *Latency { return r.Caught }),
	latencyRows("ack", func(r Result) *Latency { return r.Ack }),
	latencyRows("delivery", func(r Result) *Latency { return r.Deliver }),
	latencyRows("delivery while all read", func(r Result) *Latency { return r.AllRead }),
	latencyRows("restart", func(r Result) *Latency { return r.Restart }),
	[]row{
		{"sent late p99", "ms", func(r Result) float64 {
			if r.Late == nil {
				return 0
			}
			return r.Late.P99
		}},
		{"memory per connection", "KB", func(r Result) float64 { return r.KB }},
		{"kills", "", func(r Result) float64 { return float64(r.Kills) }},
		wireRow("PUBLISH from the sender", func(b *Bytes) float64 { return b.Publish }),
		wireRow("its acknowledgement", func(b *Bytes) float64 { return b.Ack }),
		wireRow("PUBLISH to the receiver", func(b *Bytes) float64 { return b.Deliver }),
		wireRow("its acknowledgement back", func(b *Bytes) float64 { return b.Answer }),
		wireRow("CONNECT", func(b *Bytes) float64 { return b.Connect }),
		wireRow("CONNACK", func(b *Bytes) float64 { return b.Connack }),
	})

// Report writes a table of one scenario's results: medians over the rounds, a
// column for each target, and their ratios to the baseline, which is the first
// target unless it is named.
func Report(w io.Writer, rs []Result, baseline string) error {
	if len(rs) == 0 {
		return nil
	}
	var targets []string
	by := map[string][]Result{}
	for _, r := range rs {
		if by[r.Target] == nil {
			targets = append(targets, r.Target)
		}
		by[r.Target] = append(by[r.Target], r)
	}
	if by[baseline] == nil {
		baseline = targets[0]
	}
	rounds := ""
	if n := len(by[targets[0]]); n > 1 {
		rounds = fmt.Sprintf(", median of %d rounds", n)
	}
	fmt.Fprintf(w, "\n%s%s\n", rs[0].Scenario, rounds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "  \t")
	for _, t := range targets {
		fmt.Fprintf(tw, "%s\t", t)
		if t != baseline {
			fmt.Fprintf(tw, "to %s\t", baseline)
		}
	}
	fmt.Fprintln(tw)
	for _, row := range rows {
		if !slices.ContainsFunc(rs, func(r Result) bool { return row.of(r) != 0 }) {
			continue
		}
		what := row.what
		if strings.Contains(what, "%s") {
			what = fmt.Sprintf(what, rs[0].Of)
		}
		fmt.Fprintf(tw, "  %s\t", what)
		base := median(by[baseline], row.of)
		for _, t := range targets {
			v := median(by[t], row.of)
			fmt.Fprintf(tw, "%s %s\t", figure(v), row.unit)
			if t != baseline {
				fmt.Fprintf(tw, "%s\t", ratio(v, base))
			}
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, t := range targets {
		var f Faults
		interrupted := ""
		for _, r := range by[t] {
			f.Add(r.Faults)
			if r.Interrupted {
				interrupted = "; interrupted"
			}
		}
		fmt.Fprintf(w, "  %s: %s%s\n", t, f, interrupted)
		for _, r := range by[t] {
			for _, n := range r.Notes {
				fmt.Fprintf(w, "    %s\n", n)
			}
		}
	}
	return nil
}

func median(rs []Result, of func(Result) float64) float64 {
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = of(r)
	}
	slices.Sort(v)
	n := len(v)
	if n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[n/2]
}

func ratio(v, base float64) string {
	if base == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f×", v/base)
}

// figure writes v with three significant digits, and thousands apart.
func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v == math.Trunc(v) && v < 1000 && v > -1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 1000 || v <= -1000:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
