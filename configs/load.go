package configs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Fault is one thing wrong with a configuration.
type Fault struct {
	Where string // file:line, environment variable or flag; "" a default
	Key   string
	What  string // what is wrong and what to do
}

func (f Fault) Error() string {
	s := f.What
	if f.Key != "" {
		s = f.Key + ": " + s
	}
	if f.Where != "" {
		s = f.Where + ": " + s
	}
	return s
}

// Faults are all of them.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Key is one setting.
type Key struct {
	Name string // mqtt.addr
	Help string
}

// Env is the environment variable of the key: PARLEY_MQTT_ADDR.
func (k Key) Env() string {
	return "PARLEY_" + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}

// Keys lists every setting that has one value: all but those of Lists.
func Keys() []Key { return keys(false) }

// Lists lists the settings that are lists of mappings. In a flag or an environment
// variable they are written as YAML in one line: [{allow: all, topic: "a/#"}].
func Lists() []Key { return keys(true) }

func keys(lists bool) (out []Key) {
	c := Defaults()
	walk(reflect.ValueOf(&c).Elem(), "", func(name string, v reflect.Value, f reflect.StructField) {
		if lists == (name == "rules" || name == "push.apps") {
			out = append(out, Key{Name: name, Help: f.Tag.Get("help")})
		}
	})
	return out
}

// Default returns the default of a key, as it is written.
func Default(name string) string {
	c := Defaults()
	v, _ := field(&c, name)
	return format(v)
}

func walk(v reflect.Value, prefix string, fn func(name string, v reflect.Value, f reflect.StructField)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := prefix + f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			walk(v.Field(i), name+".", fn)
			continue
		}
		fn(name, v.Field(i), f)
	}
}

func field(c *Config, name string) (found reflect.Value, ok bool) {
	walk(reflect.ValueOf(c).Elem(), "", func(n string, v reflect.Value, _ reflect.StructField) {
		if n == name {
			found, ok = v, true
		}
	})
	return found, ok
}

// Sources say where a configuration is read from.
type Sources struct {
	File  string // "" none
	Env   func(string) (string, bool)
	Flags map[string]string // by key
}

// Load reads defaults, file, environment and flags, the later over the earlier,
// and checks the whole. The error is Faults, unless the file cannot be read.
func Load(s Sources) (*Config, error) {
	c := Defaults()
	l := loader{c: &c, where: make(map[string]string)}
	if s.File != "" {
		if err := l.file(s.File); err != nil {
			return nil, err
		}
	}
	over := func(keys []Key, set func(key, value, where string)) {
		for _, k := range keys {
			if s.Env != nil {
				if v, ok := s.Env(k.Env()); ok {
					set(k.Name, v, k.Env())
				}
			}
			if v, ok := s.Flags[k.Name]; ok {
				set(k.Name, v, "--"+k.Name)
			}
		}
	}
	over(Keys(), l.set)
	over(Lists(), l.setList)
	l.faults = append(l.faults, c.check(l.where)...)
	if len(l.faults) > 0 {
		return nil, l.faults
	}
	return &c, nil
}

type loader struct {
	c      *Config
	where  map[string]string // of each key that was set
	faults Faults
}

func (l *loader) fault(where, key, format string, args ...any) {
	l.faults = append(l.faults, Fault{where, key, fmt.Sprintf(format, args...)})
}

func (l *loader) set(key, value, where string) {
	v, _ := field(l.c, key)
	l.where[key] = where
	if err := parse(v, value); err != nil {
		l.fault(where, key, "%s", err)
	}
}

// setList reads a list that is written in one line, instead of what was read before.
func (l *loader) setList(key, value, where string) {
	f, err := parser.ParseBytes([]byte(value), 0)
	if err != nil {
		l.fault(where, "", "this is not YAML: %s", firstLine(err))
		return
	}
	if len(f.Docs) != 1 || f.Docs[0].Body == nil {
		l.fault(where, key, "a list goes here, such as [] or [{…}, {…}]")
		return
	}
	maps.DeleteFunc(l.where, func(k, _ string) bool { return strings.HasPrefix(k, key+"[") })
	l.where[key] = where
	if key == "rules" {
		l.c.Rules = nil
		l.rules(where, f.Docs[0].Body)
		return
	}
	l.c.Push.Apps = nil
	l.pushApps(where, f.Docs[0].Body)
}

func (l *loader) file(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		l.fault(name, "", "this is not YAML: %s", firstLine(err))
		return nil
	}
	for _, d := range f.Docs {
		if d.Body != nil {
			l.mapping(name, "", d.Body)
		}
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func at(file string, n ast.Node) string {
	return file + ":" + strconv.Itoa(n.GetToken().Position.Line)
}

// pairs returns the entries of a mapping node.
func pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func (l *loader) mapping(file, prefix string, n ast.Node) {
	kvs, ok := pairs(n)
	if !ok {
		l.fault(at(file, n), strings.TrimSuffix(prefix, "."), "settings go here, each as name: value")
		return
	}
	for _, kv := range kvs {
		key := prefix + kv.Key.GetToken().Value
		switch {
		case key == "rules":
			l.where[key] = at(file, kv.Key)
			l.rules(file, kv.Value)
		case key == "push.apps":
			l.where[key] = at(file, kv.Key)
			l.pushApps(file, kv.Value)
		case isSection(key):
			if _, empty := kv.Value.(*ast.NullNode); !empty {
				l.mapping(file, key+".", kv.Value)
			}
		default:
			l.value(file, key, kv)
		}
	}
}

func isSection(key string) bool {
	return slices.ContainsFunc(Keys(), func(k Key) bool { return strings.HasPrefix(k.Name, key+".") })
}

func (l *loader) value(file, key string, kv *ast.MappingValueNode) {
	v, ok := field(l.c, key)
	where := at(file, kv.Key)
	if !ok {
		l.fault(where, key, "there is no such setting%s", didYouMean(key))
		return
	}
	l.where[key] = where
	switch n := kv.Value.(type) {
	case *ast.SequenceNode:
		if v.Kind() != reflect.Slice {
			l.fault(where, key, "one value goes here, not a list")
			return
		}
		list := []string{}
		for _, e := range n.Values {
			list = append(list, text(e))
		}
		v.Set(reflect.ValueOf(list))
	case *ast.MappingNode, *ast.MappingValueNode:
		l.fault(where, key, "a value goes here")
	case *ast.NullNode:
		// nothing said: the default
	default:
		if err := parse(v, text(n)); err != nil {
			l.fault(where, key, "%s", err)
		}
	}
}

func text(n ast.Node) string {
	if s, ok := n.(*ast.StringNode); ok {
		return s.Value
	}
	return n.GetToken().Value
}

func (l *loader) rules(file string, n ast.Node) {
	l.list(file, n, "rules", `{allow: publish, topic: "devices/{device}/#"}`, func() (map[string]*string, func()) {
		var r Rule
		return map[string]*string{"allow": &r.Allow, "deny": &r.Deny, "topic": &r.Topic, "role": &r.Role, "user": &r.User}, func() { l.c.Rules = append(l.c.Rules, r) }
	})
}

func (l *loader) pushApps(file string, n ast.Node) {
	l.list(file, n, "push.apps", "{name: chat, provider: apns, bundle: com.example.chat, …}", func() (map[string]*string, func()) {
		var a PushApp
		var private string
		return map[string]*string{"name": &a.Name, "provider": &a.Provider, "bundle": &a.Bundle, "team": &a.Team, "key_id": &a.KeyID, "key": &a.Key, "certificate": &a.Certificate,
				"password_file": &a.PasswordFile, "environment": &a.Environment, "service_account": &a.ServiceAccount, "subject": &a.Subject, "hosts": &a.Hosts,
				"endpoint": &a.Endpoint, "sandbox": &a.Sandbox, "ca": &a.CA, "allow_private": &private}, func() {
				a.AllowPrivate = private == "true"
				l.c.Push.Apps = append(l.c.Push.Apps, a)
			}
	})
}

// list reads a list of mappings: begin makes an element and says where its fields
// go, and what to do when they are read.
func (l *loader) list(file string, n ast.Node, key, example string, begin func() (map[string]*string, func())) {
	if _, empty := n.(*ast.NullNode); empty {
		return
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		l.fault(at(file, n), key, "a list goes here: - %s", example)
		return
	}
	for i, e := range seq.Values {
		name := fmt.Sprintf("%s[%d]", key, i)
		l.where[name] = at(file, e)
		kvs, ok := pairs(e)
		if !ok {
			l.fault(at(file, e), name, "an element is %s", example)
			continue
		}
		fields, end := begin()
		for _, kv := range kvs {
			k := kv.Key.GetToken().Value
			if fields[k] == nil {
				l.fault(at(file, kv.Key), name, "it has %s, not %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "), k)
				continue
			}
			*fields[k] = text(kv.Value)
		}
		end()
	}
}

// didYouMean names the key that is nearest to a wrong one.
func didYouMean(key string) string {
	best, least := "", 4
	for _, k := range Keys() {
		if d := distance(key, k.Name); d < least {
			best, least = k.Name, d
		}
	}
	if best == "" {
		return ""
	}
	return ": did you mean " + best + "?"
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diag+cost)
		}
	}
	return row[len(b)]
}

// parse reads a value as it is written in a file, a variable or a flag.
func parse(v reflect.Value, s string) error {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = s
	case *bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", s)
		}
		*p = b
	case *int:
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		*p = n
	case *float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", s)
		}
		*p = f
	case *time.Duration:
		d, err := ParseDuration(s)
		if err != nil {
			return err
		}
		*p = d
	case *Size:
		n, err := ParseSize(s)
		if err != nil {
			return err
		}
		*p = n
	case *[]string:
		*p = nil
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				*p = append(*p, part)
			}
		}
	default:
		return errors.New("this cannot be set here")
	}
	return nil
}

func format(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return formatDuration(x)
	case []string:
		return strings.Join(x, ",")
	}
	return fmt.Sprint(v.Interface())
}
