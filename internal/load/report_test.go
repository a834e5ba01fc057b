package load

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSpec(t *testing.T) {
	self := Spec{Name: "parley", Command: []string{"parley", "serve"}}
	for s, want := range map[string]Spec{
		"self":                               self,
		"new=self":                           {Name: "new", Command: self.Command},
		"mqtt://h:1884":                      {Name: "h:1884", Address: "h:1884"},
		"mqtt://h,http=https://h:8443/x":     {Name: "h:1883", Address: "h:1883", HTTP: "https://h:8443/x"},
		"a=mqtts://u:p@[::1],plain,lenient":  {Name: "a", Address: "[::1]:8883", TLS: true, User: "u", Password: "p", Plain: true, Lenient: true},
		"mqtt://h,pid=12,metrics=http://m:1": {Name: "h:1883", Address: "h:1883", PID: 12, Metrics: "http://m:1"},
		"exec:bin/mochi":                     {Name: "mochi", Command: []string{"bin/mochi"}},
		"m=exec:bin/m -l a,b --x=1,plain":    {Name: "m", Command: []string{"bin/m", "-l", "a,b", "--x=1"}, Plain: true},
	} {
		got, err := ParseSpec(s, self)
		if err != nil || !slices.Equal(got.Command, want.Command) {
			t.Errorf("%s: %+v %v", s, got, err)
		}
		got.Command, want.Command = nil, nil
		if g, w := got, want; g.Name != w.Name || g.Address != w.Address || g.TLS != w.TLS || g.User != w.User || g.Password != w.Password ||
			g.HTTP != w.HTTP || g.Metrics != w.Metrics || g.PID != w.PID || g.Plain != w.Plain || g.Lenient != w.Lenient {
			t.Errorf("%s: %+v, want %+v", s, g, w)
		}
	}
	for _, s := range []string{"", "h:1883", "http://h", "mqtt://", "exec:", "mqtt://h,pid=x", "mqtt://h,plane"} {
		if _, err := ParseSpec(s, self); err == nil {
			t.Errorf("%q is no target", s)
		}
	}
}

func TestReport(t *testing.T) {
	rs := []Result{
		{Scenario: "dm", Target: "a", Messages: 7, Of: "deliveries", Rate: 1000, Ack: &Latency{P50: 1}},
		{Scenario: "dm", Target: "b", Rate: 3000, Ack: &Latency{P50: 4}, Faults: Faults{Lost: 2}, Notes: []string{"seq 5 is not there"}},
		{Scenario: "dm", Target: "a", Rate: 2000, Ack: &Latency{P50: 2}},
		{Scenario: "dm", Target: "b", Rate: 5000, Ack: &Latency{P50: 4}, Interrupted: true},
		{Scenario: "dm", Target: "a", Rate: 12345.6, Ack: &Latency{P50: 3}},
	}
	for baseline, want := range map[string][]string{
		"":  {"dm, median of 3 rounds", "to a", "  deliveries  ", "2,000 /s", "4,000 /s", "2.00×", "a: lost 0, duplicated 0, out of order 0\n", "b: lost 2, duplicated 0, out of order 0; interrupted", "seq 5 is not there"},
		"b": {"to b", "0.50×"},
	} {
		var b strings.Builder
		if err := Report(&b, rs, baseline); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("baseline %q: %q is not in\n%s", baseline, w, b.String())
			}
		}
		if strings.Contains(b.String(), "CPU") {
			t.Errorf("a figure that nobody has is shown:\n%s", b.String())
		}
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0421: "0.042", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 7: "7", 1234.5: "1,234", 1234567: "1,234,567", -1234567: "-1,234,567", 999999: "999,999"} {
		if got := figure(v); got != want {
			t.Errorf("%g: %s, want %s", v, got, want)
		}
	}
}
