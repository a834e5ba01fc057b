// Package arch is the architect: it reads what every room imports and holds it
// against the floors.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/parley-im/parley/"

// floors says where each room stands. A room imports lower floors only. A new
// folder fails until its floor is written down here.
var floors = map[string]int{
	"im": 0, "internal/logging": 0, "internal/ledger": 0,
	"configs": 1, "store": 1, "client": 1,
	"chat": 2, "delivery": 2, "plain": 2, "auth": 2, "pushgw": 2, "internal/load": 2,
	"broker": 3, "bridge": 3, "httpapi": 3, "web": 3, "store/pebblestore": 3, "store/mongostore": 3,
	"pushgw/apns": 3, "pushgw/fcm": 3, "pushgw/webpush": 3, "pushgw/pushtest": 3,
	"hooks":      4,
	"app":        5,
	"cmd/parley": 6,
	// Tests and tools stand outside the house and may look into all of it.
	"internal/arch": 9, "internal/plays": 9, "internal/load/stockmochi": 9, "store/storetest": 9, "store/mongostore/mongotest": 9,
}

// hidden says which rooms may touch a foreign thing; everybody else has to ask them.
var hidden = map[string][]string{
	"github.com/cockroachdb/pebble":         {"store/pebblestore"},
	"go.mongodb.org/mongo-driver":           {"store/mongostore"},
	"github.com/mochi-mqtt/server":          {"broker", "hooks", "internal/load/stockmochi"},
	"github.com/gorilla/websocket":          {"broker"},
	"github.com/pires/go-proxyproto":        {"broker"},
	"github.com/danielgtaylor/huma":         {"httpapi"},
	"github.com/golang-jwt/jwt":             {"auth", "pushgw/apns", "pushgw/webpush", "pushgw/pushtest"},
	"github.com/sideshow/apns2":             {"pushgw/apns"},
	"golang.org/x/oauth2":                   {"pushgw/fcm"},
	"github.com/SherClockHolmes/webpush-go": {"pushgw/webpush"},
	"golang.org/x/crypto/argon2":            {"auth"},
	"github.com/eclipse/paho.golang":        {"client", "bridge"},
	"github.com/prometheus/client_golang":   {"app"},
	"github.com/spf13/cobra":                {"cmd/parley"},
	"github.com/goccy/go-yaml":              {"configs"},
	"github.com/lmittmann/tint":             {"internal/logging"},
	"github.com/HdrHistogram":               {"internal/load"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestFloors(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := map[string]bool{}
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		room := strings.TrimPrefix(p.ImportPath, module)
		seen[room] = true
		floor, known := floors[room]
		if !known {
			t.Errorf("%s has no floor: write it down in floors", room)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, room, floor, imp)
		}
	}
	if len(seen) < 10 {
		t.Fatalf("go list found %d rooms only", len(seen))
	}
}

func checkImport(t *testing.T, room string, floor int, imp string) {
	if other, ours := strings.CutPrefix(imp, module); ours {
		if of, known := floors[other]; known && of >= floor && !(floor == 9 && of == 9) {
			t.Errorf("%s (floor %d) imports %s (floor %d): arrows point down", room, floor, other, of)
		}
		return
	}
	if floor == 0 && room == "im" && strings.Contains(strings.Split(imp, "/")[0], ".") {
		t.Errorf("im imports %s: it is standard library only", imp)
	}
	for thing, rooms := range hidden {
		if imp != thing && !strings.HasPrefix(imp, thing+"/") {
			continue
		}
		allowed := floor == 9
		for _, r := range rooms {
			allowed = allowed || r == room
		}
		if !allowed {
			t.Errorf("%s imports %s, which only %v may touch", room, imp, rooms)
		}
	}
}
