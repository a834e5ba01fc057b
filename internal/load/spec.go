package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Spec says where a target is. Either Address or Command is set.
type Spec struct {
	Name           string
	Address        string   // host:port of MQTT
	TLS            bool     // of MQTT
	User, Password string   // of a plain broker that wants a login
	HTTP           string   // Parley's API, as a URL
	Metrics        string   // Parley's metrics, as a URL of the listener
	AdminToken     string   // makes the accounts where registration is closed, and disables them at the end
	PID            int      // of a server on this machine, for its CPU and memory; 0: unknown
	Command        []string // a server to start: see Open
	Plain          bool     // has topics instead of users: any broker but Parley
	Grow           Grow     // what is in its store besides; of a server that is started
	Lenient        bool     // what it loses is reported and is no failure of the run
}

// Grow is what a server's store has besides what a scenario makes, to see that
// the figures stay the same. It is put there after the accounts were made, by Put,
// while the server is stopped; dir is the server's directory.
type Grow struct {
	Stored        int // messages, in the conversations of the scenario
	Conversations int // of each user, who are in so many groups more
	Members       int // of each group of the scenario, the others never connected
	Put           func(ctx context.Context, dir string, g Grow) error
}

func (g Grow) any() bool { return g.Stored+g.Conversations+g.Members > 0 }

var specName = regexp.MustCompile(`^([A-Za-z0-9._-]+)=`)

// ParseSpec reads [NAME=]WHERE[,OPTION...]. WHERE is mqtt://HOST:PORT, mqtts://…,
// exec:COMMAND (a server to start, see Open) or self, which is self. Options are
// plain, lenient, http=URL, metrics=URL and pid=N; for a server that is started
// stored=N, conversations=N and members=N: see Grow.
func ParseSpec(s string, self Spec) (Spec, error) {
	where, options := splitOptions(s)
	name := ""
	if m := specName.FindStringSubmatch(where); m != nil {
		name, where = m[1], where[len(m[0]):]
	}
	var sp Spec
	switch {
	case where == "self":
		sp = self
	case strings.HasPrefix(where, "exec:"):
		if sp.Command = strings.Fields(where[len("exec:"):]); len(sp.Command) == 0 {
			return sp, fmt.Errorf("target %q: exec: is without a command", s)
		}
		sp.Name = sp.Command[0][strings.LastIndexByte(sp.Command[0], '/')+1:]
	default:
		u, err := url.Parse(where)
		if err != nil || u.Hostname() == "" || u.Scheme != "mqtt" && u.Scheme != "mqtts" || strings.Contains(u.Host, ",") || strings.Trim(u.Path, "/") != "" {
			return sp, fmt.Errorf("target %q: write mqtt://HOST:PORT, mqtts://HOST:PORT, exec:COMMAND or self", s)
		}
		port := u.Port()
		if sp.TLS = u.Scheme == "mqtts"; port == "" {
			if port = "1883"; sp.TLS {
				port = "8883"
			}
		}
		sp.Address = net.JoinHostPort(u.Hostname(), port)
		sp.Name = sp.Address
		sp.User = u.User.Username()
		sp.Password, _ = u.User.Password()
	}
	if name != "" {
		sp.Name = name
	}
	for _, o := range options {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "plain":
			sp.Plain = true
		case "lenient":
			sp.Lenient = true
		case "http":
			sp.HTTP = v
		case "metrics":
			sp.Metrics = v
		case "pid":
			n, err := strconv.Atoi(v)
			if err != nil || n <= 0 {
				return sp, fmt.Errorf("target %q: %q is not a process id", s, v)
			}
			sp.PID = n
		default: // of Grow
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 || len(sp.Command) == 0 {
				return sp, fmt.Errorf("target %q: %s is a number, and for a server that the tool starts", s, k)
			}
			*map[string]*int{"stored": &sp.Grow.Stored, "conversations": &sp.Grow.Conversations, "members": &sp.Grow.Members}[k] = n
		}
	}
	return sp, nil
}

var specOption = regexp.MustCompile(`^(plain|lenient|(http|metrics|pid|stored|conversations|members)=.*)$`)

// splitOptions takes the options off the end; what stands before may have commas.
func splitOptions(s string) (where string, options []string) {
	for {
		i := strings.LastIndexByte(s, ',')
		if i < 0 || !specOption.MatchString(s[i+1:]) {
			return s, options
		}
		s, options = s[:i], append(options, s[i+1:])
	}
}

// fill derives what was not said, for a Parley at an address.
func (s *Spec) fill() error {
	if s.Address == "" && len(s.Command) == 0 {
		return errors.New("a target needs an address or a command")
	}
	if s.Plain || s.Address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(s.Address)
	if err != nil {
		return err
	}
	if s.HTTP == "" {
		s.HTTP = "http://" + net.JoinHostPort(host, "8080")
	}
	if s.Metrics == "" {
		s.Metrics = "http://" + net.JoinHostPort(host, "9090")
	}
	return nil
}
