//go:build race

package plays

// raceEnabled: the server is built with the race detector as the plays are.
const raceEnabled = true
