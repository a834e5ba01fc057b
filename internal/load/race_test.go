//go:build race

package load

// raceEnabled: the programs are built with the race detector as the tests are.
const raceEnabled = true
