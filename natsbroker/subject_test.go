package natsbroker

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

func TestSubject(t *testing.T) {
	for topic, want := range map[string]string{
		"":                         "p.=",
		"all":                      "p.all",
		"topic/orders:7/A-Z_0@~$#": "p.topic/orders:7/A-Z_0@~$#",
		"a.b":                      "p.a=2Eb",
		"*":                        "p.=2A",
		">":                        "p.=3E",
		"=2E":                      "p.=3D2E",
		" \t\r\n\x00\x7f":          "p.=20=09=0D=0A=00=7F",
		"ü":                        "p.=C3=BC",
		"\xff":                     "p.=FF",
		strings.Repeat(".", 1030):  "p." + strings.Repeat("=2E", 1030),
	} {
		got, err := subject("p.", topic)
		if got != want || err != nil {
			t.Errorf("subject(%.50q) = %q, %v, want %q", topic, got, err, want)
		}
	}
	if got, err := subject("p.", strings.Repeat(".", 2000)); err == nil {
		t.Errorf("a subject of %d bytes is no error", len(got))
	}
}

func TestSubjectPrefix(t *testing.T) {
	for name, want := range map[string]string{"a": "a.", "a.b-c_D": "a.b-c_D."} {
		if got, err := subjectPrefix(name); got != want || err != nil {
			t.Errorf("subjectPrefix(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"", ".", "a.", ".a", "a..b", "*", "a.>", "a b", "ü", "a\n", "a=", strings.Repeat("x", 201)} {
		if got, err := subjectPrefix(name); err == nil {
			t.Errorf("subjectPrefix(%q) = %q, want an error", name, got)
		}
	}
}

// A subject is valid and has one token behind the prefix. The topic can be read
// from it, so no two topics have the same.
func FuzzSubject(f *testing.F) {
	for _, topic := range []string{"", "=", "=2E", ".", "a b", "*", ">", "\x00", "\xff", "日本語", "topic/A"} {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		got, err := subject("realtime.", topic)
		if err != nil {
			if len(topic) <= 1030 {
				t.Fatal(err)
			}
			return
		}
		token, ok := strings.CutPrefix(got, "realtime.")
		if !ok || len(got) > maxSubjectBytes || strings.ContainsAny(token, ". \t\r\n\x00*>") || !server.IsValidLiteralSubject(got) {
			t.Fatalf("subject(%q) = %q", topic, got)
		}
		var back strings.Builder
		for i, part := range strings.Split(token, "=") {
			if i == 0 || token == "=" {
				back.WriteString(part)
				continue
			}
			c, err := hex.DecodeString(part[:2])
			if err != nil {
				t.Fatalf("subject(%q) = %q", topic, got)
			}
			back.Write(c)
			back.WriteString(part[2:])
		}
		if back.String() != topic {
			t.Errorf("subject(%q) = %q, which is that of %q", topic, got, back.String())
		}
	})
}
