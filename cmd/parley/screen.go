package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode"

	"golang.org/x/term"
)

// screen is a terminal with a line to edit, or plain lines.
type screen struct {
	in     *bufio.Scanner
	term   *term.Terminal
	fd     int
	before *term.State

	mu  sync.Mutex
	out io.Writer
}

func openScreen(plain bool) (*screen, error) {
	s := &screen{fd: int(os.Stdin.Fd()), out: os.Stdout, in: bufio.NewScanner(os.Stdin)}
	if plain || !term.IsTerminal(s.fd) || !term.IsTerminal(int(os.Stdout.Fd())) {
		return s, nil
	}
	before, err := term.MakeRaw(s.fd)
	if err != nil {
		return nil, err
	}
	s.before = before
	s.term = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{os.Stdin, os.Stdout}, "> ")
	s.out = s.term
	s.resize()
	return s, nil
}

func (s *screen) resize() {
	if w, h, err := term.GetSize(s.fd); err == nil {
		_ = s.term.SetSize(w, h)
	}
}

func (s *screen) close() {
	if s.before != nil {
		_ = term.Restore(s.fd, s.before)
	}
}

func (s *screen) password(prompt string) (string, error) {
	if s.term != nil {
		return s.term.ReadPassword(prompt)
	}
	if term.IsTerminal(s.fd) {
		fmt.Fprint(os.Stderr, prompt)
		b, err := term.ReadPassword(s.fd)
		fmt.Fprintln(os.Stderr)
		return string(b), err
	}
	if s.in.Scan() {
		return s.in.Text(), nil
	}
	return "", errors.New("no password on standard input")
}

func (s *screen) line() (string, error) {
	if s.term != nil {
		return s.term.ReadLine()
	}
	if s.in.Scan() {
		return s.in.Text(), nil
	}
	return "", io.EOF
}

// print shows a line above the one being edited.
func (s *screen) print(style, format string, args ...any) {
	text := printable(fmt.Sprintf(format, args...))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		fmt.Fprintln(s.out, text)
		return
	}
	fmt.Fprintf(s.out, "%s%s\x1b[0m\r\n", style, text)
}

// Styles of lines.
const (
	quiet = "\x1b[2m"
	loud  = "\x1b[1m"
	mine  = "\x1b[36m"
	alarm = "\x1b[31m"
	usual = ""
)

// printable replaces control characters: a message must not drive the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar {
			return '\u00b7'
		}
		return r
	}, s)
}
