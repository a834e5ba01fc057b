// Package configs is what an operator can set: a typed Config with its defaults,
// read from a file, the environment and flags, in rising order of precedence,
// and checked as a whole: all faults at once, each with where it stands and what
// to do. parley.yaml shows every key; production.yaml is an example.
package configs
