package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/parley-im/parley/im"
)

// argon2id parameters: the OWASP password storage recommendation.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonKey     = 32
)

// Limits of a password, in bytes.
const (
	MinPassword = 8
	MaxPassword = 256
)

// CheckPassword says what is wrong with a new password, or nil.
func CheckPassword(user im.UserID, password string) error {
	bad := func(reason string) error { return im.Refuse(im.Invalid, "password_invalid", "%s", reason) }
	switch {
	case len(password) < MinPassword || len(password) > MaxPassword:
		return bad(fmt.Sprintf("a password has %d to %d bytes", MinPassword, MaxPassword))
	case strings.EqualFold(password, string(user)):
		return bad("the password is the user id")
	case strings.Count(password, password[:1]) == len(password):
		return bad("the password is one character repeated")
	}
	switch strings.ToLower(password) {
	case "password", "passw0rd", "password1", "12345678", "123456789", "1234567890", "qwertyui", "qwertyuiop", "iloveyou", "changeme", "letmein1", "11111111":
		return bad("the password is one of the first that anybody tries")
	}
	return nil
}

// hashPassword returns the PHC string of a password under a new salt.
func hashPassword(password string) string {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	sum := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(sum))
}

// verifyPassword compares in constant time. A string that is no argon2id hash
// matches nothing.
func verifyPassword(phc, password string) bool {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false
	}
	var version, memory, time, threads int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil || memory < 8 || memory > 1<<20 || time < 1 || time > 64 || threads < 1 || threads > 64 {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(want) < 16 {
		return false
	}
	got := argon2.IDKey([]byte(password), salt, uint32(time), uint32(memory), uint8(threads), uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1
}
