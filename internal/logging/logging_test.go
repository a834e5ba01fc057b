package logging

import (
	"bytes"
	"strings"
	"testing"
)

func TestSecretsAreBlanked(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := New(&out, "info", format)
		log.Info("login", "user", "alice", "password", "hunter2", "access_token", "eyJ", "Body", "lunch?")
		s := out.String()
		if !strings.Contains(s, "alice") {
			t.Errorf("%s: the user is missing: %s", format, s)
		}
		for _, leak := range []string{"hunter2", "eyJ", "lunch"} {
			if strings.Contains(s, leak) {
				t.Errorf("%s: %q was logged: %s", format, leak, s)
			}
		}
	}
}

func TestLevel(t *testing.T) {
	var out bytes.Buffer
	log := New(&out, "warn", "json")
	log.Info("quiet")
	log.Warn("loud")
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "loud") {
		t.Error(s)
	}
}
