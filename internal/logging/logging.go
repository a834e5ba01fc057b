// Package logging makes the program's logger: readable on a terminal, JSON
// otherwise. As a last line of defence it blanks attributes whose names say that
// they hold a secret or a message body; nothing is supposed to log them.
package logging

import (
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// secret are the words that make an attribute's value disappear.
var secret = []string{"password", "passwd", "token", "secret", "authorization", "body", "payload", "cookie", "bearer"}

// New makes a logger on w. level is debug, info, warn or error; format is text,
// json or auto.
func New(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	if format == "auto" {
		format = "json"
		if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			format = "text"
		}
	}
	if format == "text" {
		f, ok := w.(*os.File)
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, ReplaceAttr: redact, TimeFormat: time.TimeOnly, NoColor: !ok || !term.IsTerminal(int(f.Fd()))}))
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l, ReplaceAttr: redact}))
}

func redact(_ []string, a slog.Attr) slog.Attr {
	name := strings.ToLower(a.Key)
	if slices.ContainsFunc(secret, func(s string) bool { return strings.Contains(name, s) }) {
		return slog.String(a.Key, "[redacted]")
	}
	return a
}
