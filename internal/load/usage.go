package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is what the server has used.
type usage struct {
	cpu time.Duration // user and system
	rss int64         // bytes
}

// clockTick is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// usage reads /proc/PID/stat (proc(5)); zero where there is none.
func (t *Target) usage() usage {
	var u usage
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.PID))
	if err != nil {
		return u
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	if len(f) < 22 {
		return u
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	pages, _ := strconv.ParseInt(f[21], 10, 64)
	u.cpu = time.Duration(user+sys) * clockTick
	u.rss = pages * int64(os.Getpagesize())
	return u
}

// memory is the server's resident memory in bytes: of its process if it is on this
// machine, otherwise what its metrics say.
func (t *Target) memory(ctx context.Context) (int64, error) {
	if u := t.usage(); u.rss > 0 {
		return u.rss, nil
	}
	if t.Metrics == "" {
		return 0, fmt.Errorf("%s: its memory is unknown: give pid= of its process, or metrics=", t.Name)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(t.Metrics, "/metrics")+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := httpClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "process_resident_memory_bytes "); ok {
			f, err := strconv.ParseFloat(v, 64)
			return int64(f), err
		}
	}
	return 0, fmt.Errorf("%s: its metrics have no process_resident_memory_bytes (%s)", t.Name, res.Status)
}

// perMessage is CPU time in microseconds for each of n messages.
func perMessage(cpu time.Duration, n int64) float64 {
	if n == 0 {
		return 0
	}
	return float64(cpu.Microseconds()) / float64(n)
}
