//go:build !race

package plays

const raceEnabled = false
