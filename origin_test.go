package realtime_test

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// originRequest returns a request for host with the header lines, each "Name:
// value"; the line "TLS" makes it one that came over TLS.
func originRequest(host string, lines ...string) *http.Request {
	r := &http.Request{Method: "GET", Host: host, URL: &url.URL{Path: "/"}, Header: http.Header{}}
	for _, line := range lines {
		if line == "TLS" {
			r.TLS = &tls.ConnectionState{}
			continue
		}
		name, value, _ := strings.Cut(line, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func TestSameOrigin(t *testing.T) {
	tests := []struct {
		name  string
		host  string
		lines []string
		want  bool
	}{
		{"no origin", "example.com", nil, true},
		{"same", "example.com", []string{"Origin: https://example.com"}, true},
		{"same over http", "example.com", []string{"Origin: http://example.com"}, true},
		{"letter case", "Example.COM", []string{"Origin: HTTPS://exAmple.com"}, true},
		{"another site", "example.com", []string{"Origin: https://evil.org"}, false},
		{"prefix", "example.com", []string{"Origin: https://example.com.evil.org"}, false},
		{"suffix", "example.com", []string{"Origin: https://evil-example.com"}, false},
		{"subdomain", "example.com", []string{"Origin: https://a.example.com"}, false},
		{"parent domain", "a.example.com", []string{"Origin: https://example.com"}, false},
		{"trailing dot is another host", "example.com", []string{"Origin: https://example.com."}, false},

		{"port", "example.com:8443", []string{"Origin: https://example.com:8443"}, true},
		{"another port", "example.com:8443", []string{"Origin: https://example.com:8444"}, false},
		{"port against none", "example.com", []string{"Origin: https://example.com:8443"}, false},
		{"none against port", "example.com:8443", []string{"Origin: https://example.com"}, false},
		{"default port in host, https", "example.com:443", []string{"Origin: https://example.com"}, true},
		{"default port in host, http", "example.com:80", []string{"Origin: http://example.com"}, true},
		{"default port in origin", "example.com", []string{"Origin: https://example.com:443"}, true},
		{"other scheme's default port", "example.com:80", []string{"Origin: https://example.com"}, false},
		{"IPv6", "[::1]:8080", []string{"Origin: http://[::1]:8080"}, true},
		{"IPv6 without port", "[2001:DB8::1]", []string{"Origin: https://[2001:db8::1]"}, true},
		{"IPv6 spelled out", "[2001:db8:0:0:0:0:0:1]:443", []string{"Origin: https://[2001:db8::1]"}, true},
		{"another IPv6", "[::1]:8080", []string{"Origin: http://[::2]:8080"}, false},
		{"another IPv6 port", "[::1]:8080", []string{"Origin: http://[::1]:80"}, false},
		{"IPv4", "127.0.0.1:8080", []string{"Origin: http://127.0.0.1:8080"}, true},

		{"null", "example.com", []string{"Origin: null"}, false},
		{"file", "example.com", []string{"Origin: file://"}, false},
		{"null as host", "null", []string{"Origin: null"}, false},
		{"empty", "example.com", []string{"Origin: "}, false},
		{"empty and no host", "", []string{"Origin: "}, false},
		{"no host", "", []string{"Origin: https://"}, false},
		{"no scheme", "example.com", []string{"Origin: example.com"}, false},
		{"empty scheme", "example.com", []string{"Origin: ://example.com"}, false},
		{"file", "", []string{"Origin: file://"}, false},
		{"app scheme", "localhost", []string{"Origin: capacitor://localhost"}, false},
		{"WebSocket scheme", "example.com", []string{"Origin: ws://example.com"}, true}, // ws4py, IXWebSocket
		{"WebSocket scheme over TLS", "example.com", []string{"Origin: WSS://example.com"}, true},
		{"WebSocket scheme, port", "example.com:8080", []string{"Origin: ws://example.com:8080"}, true},
		{"WebSocket scheme, default port", "example.com:443", []string{"Origin: wss://example.com"}, true},
		{"WebSocket scheme, other default port", "example.com:443", []string{"Origin: ws://example.com"}, false},
		{"WebSocket scheme, another site", "example.com", []string{"Origin: wss://evil.org"}, false},
		{"WebSocket scheme of http, asked over TLS", "example.com", []string{"Origin: ws://example.com", "X-Forwarded-Proto: https"}, false},
		{"scheme of no page", "example.com", []string{"Origin: wsss://example.com"}, false},
		{"path", "example.com", []string{"Origin: https://example.com/"}, false},
		{"query", "example.com", []string{"Origin: https://example.com?x"}, false},
		{"userinfo", "example.com", []string{"Origin: https://me@example.com"}, false},
		{"userinfo that looks like the host", "example.com", []string{"Origin: https://example.com@evil.org"}, false},
		{"userinfo and port that look like the host", "example.com", []string{"Origin: https://example.com:443@evil.org"}, false},
		{"backslash", "example.com", []string{`Origin: https://evil.org\.example.com`}, false},
		{"trailing space", "example.com", []string{"Origin: https://example.com "}, false},
		{"list", "example.com", []string{"Origin: https://example.com https://evil.org"}, false},
		{"zone", "[fe80::1%25eth0]", []string{"Origin: http://[fe80::1%25eth0]"}, false},
		{"IPv4 in brackets", "[127.0.0.1]", []string{"Origin: http://[127.0.0.1]"}, false},
		{"open bracket", "[::1", []string{"Origin: http://[::1"}, false},
		{"garbage after bracket", "[::1]x", []string{"Origin: http://[::1]x"}, false},
		{"bare IPv6", "::1", []string{"Origin: http://::1"}, false},
		{"port too large", "example.com:65537", []string{"Origin: https://example.com:65537"}, false},
		{"port zero", "example.com", []string{"Origin: https://example.com:0"}, false},
		{"port signed", "example.com:443", []string{"Origin: https://example.com:+443"}, false},
		{"port empty", "example.com", []string{"Origin: https://example.com:"}, false},
		{"twice", "example.com", []string{"Origin: https://example.com", "Origin: https://example.com"}, false},
		{"two", "example.com", []string{"Origin: https://example.com", "Origin: https://evil.org"}, false},
		{"two of which the first is another's", "example.com", []string{"Origin: https://evil.org", "Origin: https://example.com"}, false},

		// What browsers say themselves.
		{"same-origin behind a proxy that hides all", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", "Sec-Fetch-Site: same-origin"}, true},
		{"same-site", "10.0.0.7:8080", []string{"Origin: https://a.example.com", "Sec-Fetch-Site: same-site"}, false},
		{"cross-site", "10.0.0.7:8080", []string{"Origin: https://evil.org", "Sec-Fetch-Site: cross-site"}, false},
		{"none", "10.0.0.7:8080", []string{"Origin: https://evil.org", "Sec-Fetch-Site: none"}, false},
		{"same-origin and another", "example.com",
			[]string{"Origin: https://evil.org", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"}, false},
		{"same-origin of null", "example.com", []string{"Origin: null", "Sec-Fetch-Site: same-origin"}, false},
		{"same-origin of two", "example.com",
			[]string{"Origin: https://evil.org", "Origin: https://example.com", "Sec-Fetch-Site: same-origin"}, false},

		// Proxies that rewrite Host.
		{"X-Forwarded-Host", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", "X-Forwarded-Host: example.com"}, true},
		{"X-Forwarded-Host with port", "10.0.0.7:8080",
			[]string{"Origin: https://example.com:8443", "X-Forwarded-Host: Example.com:8443"}, true},
		{"X-Forwarded-Host, first of many", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", "X-Forwarded-Host: example.com, inner.example.net"}, true},
		{"X-Forwarded-Host, not the first", "10.0.0.7:8080",
			[]string{"Origin: https://inner.example.net", "X-Forwarded-Host: example.com, inner.example.net"}, false},
		{"X-Forwarded-Host of another", "10.0.0.7:8080",
			[]string{"Origin: https://evil.org", "X-Forwarded-Host: example.com"}, false},
		{"X-Forwarded-Host written by an inner proxy", "example.com",
			[]string{"Origin: https://example.com", "X-Forwarded-Host: inner.example.net"}, true},
		{"rewritten Host and nothing else", "10.0.0.7:8080", []string{"Origin: https://example.com"}, false},
		{"Forwarded", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", "Forwarded: for=192.0.2.43;host=example.com;proto=https"}, true},
		{"Forwarded, letter case and spaces", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", `Forwarded: For="[2001:db8::17]:4711" ; Host = "EXAMPLE.com"`}, true},
		{"Forwarded with port", "10.0.0.7:8080",
			[]string{"Origin: https://example.com:8443", `Forwarded: host="example.com:8443"`}, true},
		{"Forwarded, first host", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", "Forwarded: for=192.0.2.43", "Forwarded: host=example.com, host=inner.example.net"}, true},
		{"Forwarded, second host", "10.0.0.7:8080",
			[]string{"Origin: https://inner.example.net", "Forwarded: host=example.com, host=inner.example.net"}, false},
		{"Forwarded of another", "10.0.0.7:8080",
			[]string{"Origin: https://evil.org", "Forwarded: host=example.com"}, false},
		{"Forwarded, host inside a quoted string", "10.0.0.7:8080",
			[]string{"Origin: https://evil.org", `Forwarded: for="x;host=evil.org";host=example.com`}, false},
		{"Forwarded, host behind an escaped quote", "10.0.0.7:8080",
			[]string{"Origin: https://evil.org", `Forwarded: for="x\";host=evil.org;";host=example.com`}, false},
		{"Forwarded, host behind a quoted string", "10.0.0.7:8080",
			[]string{"Origin: https://example.com", `Forwarded: for="x\";host=evil.org,";host=example.com`}, true},
		{"Forwarded, open quote", "10.0.0.7:8080",
			[]string{"Origin: https://evil.org", `Forwarded: for="x\`}, false},

		// Proxies that cut the port off.
		{"X-Forwarded-Port", "example.com",
			[]string{"Origin: https://example.com:8443", "X-Forwarded-Port: 8443"}, true},
		{"X-Forwarded-Port and X-Forwarded-Host", "10.0.0.7:8080",
			[]string{"Origin: https://example.com:8443", "X-Forwarded-Host: example.com", "X-Forwarded-Port: 8443, 80"}, true},
		{"another X-Forwarded-Port", "example.com",
			[]string{"Origin: https://example.com:8444", "X-Forwarded-Port: 8443"}, false},
		{"X-Forwarded-Port of an inner proxy", "example.com",
			[]string{"Origin: https://example.com", "X-Forwarded-Port: 80"}, true},
		{"X-Forwarded-Port against a port in Host", "example.com:8443",
			[]string{"Origin: https://example.com:9000", "X-Forwarded-Port: 9000"}, false},

		// The scheme: a page from http must not reach what is asked over TLS.
		{"http page over TLS", "example.com", []string{"TLS", "Origin: http://example.com"}, false},
		{"https page over TLS", "example.com", []string{"TLS", "Origin: https://example.com"}, true},
		{"http page, X-Forwarded-Proto https", "example.com:80",
			[]string{"Origin: http://example.com", "X-Forwarded-Proto: https"}, false},
		{"http page, X-Forwarded-Proto wss", "example.com:80",
			[]string{"Origin: http://example.com", "X-Forwarded-Proto: WSS, http"}, false},
		{"http page, Forwarded proto", "example.com:80",
			[]string{"Origin: http://example.com", "Forwarded: for=192.0.2.43;proto=https"}, false},
		{"http page through a proxy that speaks TLS inwards", "example.com",
			[]string{"TLS", "Origin: http://example.com", "X-Forwarded-Proto: http"}, true},
		{"https page, X-Forwarded-Proto http from an inner proxy", "example.com",
			[]string{"Origin: https://example.com", "X-Forwarded-Proto: http"}, true},
		{"https page, X-Forwarded-Proto wss", "example.com",
			[]string{"Origin: https://example.com", "X-Forwarded-Proto: wss"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := realtime.SameOrigin(originRequest(tt.host, tt.lines...)); got != tt.want {
				t.Errorf("SameOrigin(Host %s, %q) = %t, want %t", tt.host, tt.lines, got, tt.want)
			}
		})
	}
}

func TestAllowOrigins(t *testing.T) {
	tests := []struct {
		patterns string // separated by spaces
		origins  string // separated by spaces
		want     bool
	}{
		{"https://app.example.com", "https://app.example.com https://APP.example.com HTTPS://app.example.com:443", true},
		{"https://app.example.com", "http://app.example.com https://app.example.com:80 https://app.example.com:8443", false},
		{"https://app.example.com", "https://example.com https://a.app.example.com https://app.example.com.evil.org https://app.example.com@evil.org", false},
		{"https://app.example.com", "https://app.example.com/ https://app.example.com. https://app-example.com null app.example.com", false},
		{"HTTPS://App.Example.COM", "https://app.example.com", true},
		{"https://app.example.com:443", "https://app.example.com https://app.example.com:443", true},
		{"https://app.example.com:8443", "https://app.example.com:8443", true},
		{"https://app.example.com:8443", "https://app.example.com", false},
		{"https://*.example.com", "https://a.example.com https://a.b.example.com https://A.EXAMPLE.com:443", true},
		{"https://*.example.com", "https://example.com https://evil-example.com https://example.com.evil.org https://a.example.com.evil.org", false},
		{"https://*.example.com", "https://.example.com https://a..example.com https://evil.org/.example.com https://evil.org?.example.com", false},
		{"https://*.example.com", "https://a.example.com:8443 http://a.example.com https://*.example.com https://evil.org#.example.com", false},
		{"https://*.example.com:*", "https://a.example.com https://a.example.com:8443", true},
		{"http://localhost:*", "http://localhost http://localhost:3000 http://localhost:65535", true},
		{"http://localhost:*", "http://localhost:65536 http://localhost:x http://localhost: https://localhost:3000 http://localhost.evil.org:3000", false},
		{"http://localhost", "http://localhost:3000", false},
		{"http://[::1]:*", "http://[::1] http://[::1]:3000 http://[0:0:0:0:0:0:0:1]:3000", true},
		{"http://[::1]:*", "http://[::2]:3000 http://::1 http://[::1]evil.org http://[::1].evil.org", false},
		{"http://127.0.0.1:3000", "http://127.0.0.1:3000", true},
		{"https://app.example.com", "wss://app.example.com WSS://app.example.com:443", true},
		{"https://app.example.com", "ws://app.example.com wss://app.example.com:8443 wss://example.com", false},
		{"http://localhost:3000", "ws://localhost:3000", true},
		{"capacitor://localhost", "capacitor://localhost", true},
		{"capacitor://localhost", "http://localhost https://localhost capacitor://localhost:1", false},
		{"chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop", true},
		{"app.v2+x://localhost", "app.v2+x://localhost", true},
		{"https://xn--bcher-kva.example", "https://xn--bcher-kva.example", true},
		{"https://a.example https://b.example", "https://a.example https://b.example", true},
		{"https://a.example https://b.example", "https://c.example", false},
		{"null", "null", true},
		{"null", "null://x https://null file:// https://a.example", false},
		{"https://a.example", "null", false},
		{"https://*.example https://null", "null", false},
		{"file://", "file://", true},
		{"file://", "file: file:/// file://x file://localhost FILE:// null ://", false},
		{"", "https://a.example null", false},
	}
	for _, tt := range tests {
		check := realtime.AllowOrigins(strings.Fields(tt.patterns)...)
		for o := range strings.FieldsSeq(tt.origins) {
			if got := check(originRequest("evil.org", "Origin: "+o)); got != tt.want {
				t.Errorf("AllowOrigins(%s) of Origin %s = %t, want %t", tt.patterns, o, got, tt.want)
			}
		}
		if !check(originRequest("example.com")) {
			t.Errorf("AllowOrigins(%s) refuses a request without Origin", tt.patterns)
		}
	}
}

// The server's own site, and what a browser or a proxy says of it, is nothing
// to a list of origins.
func TestAllowOriginsLooksAtOriginAlone(t *testing.T) {
	check := realtime.AllowOrigins("https://app.example.com")
	for _, lines := range [][]string{
		{"Origin: https://example.com"},
		{"Origin: https://example.com", "Sec-Fetch-Site: same-origin"},
		{"Origin: https://example.com", "X-Forwarded-Host: app.example.com"},
		{"Origin: https://app.example.com", "Origin: https://app.example.com"},
		{"Origin: https://app.example.com", "Origin: https://evil.org"},
		{"Origin: "},
	} {
		if check(originRequest("example.com", lines...)) {
			t.Errorf("accepts %q", lines)
		}
	}
}

func TestAllowOriginsPanicsOnMalformedPatterns(t *testing.T) {
	const form = "an origin is a scheme"
	tests := []struct{ pattern, want string }{
		{"example.com", `write "https://example.com"`},
		{"localhost:3000", `write "https://localhost:3000"`},
		{"*.example.com", `write "https://*.example.com"`},
		{"*", "leave the check nil"},
		{"wss://example.com", `write "https://example.com"`},
		{"ws://example.com", `write "http://example.com"`},
		{"WSS://example.com", `write "https://example.com"`},
		{"https://example.com/", `write "https://example.com"`},
		{"https://example.com/chat", `write "https://example.com"`},
		{"https://example.com:8443?x", `write "https://example.com:8443"`},
		{"", form},
		{"https://", form},
		{"https:///chat", form},
		{"file:///", form},
		{"file://*", form},
		{"://example.com", form},
		{"1http://example.com", form},
		{"https://*", form},
		{"https://*.", form},
		{"https://*.*.example.com", form},
		{"https://a.*.example.com", form},
		{"https://*example.com", form},
		{"https://*.[::1]", form},
		{"https://.example.com", form},
		{"https://a..example.com", form},
		{"https://me@example.com", form},
		{"https://example.com:", form},
		{"https://example.com:0", form},
		{"https://example.com:99999", form},
		{"https://example.com:3000:*", form},
		{"https://[::1]:3000:*", form},
		{"https://[::1", form},
		{"https://::1", form},
		{"https://bücher.example", form},
		{" https://example.com", form},
	}
	for _, tt := range tests {
		func() {
			defer func() {
				got := fmt.Sprint(recover())
				if !strings.HasPrefix(got, "realtime: AllowOrigins: ") || !strings.Contains(got, tt.want) ||
					!strings.Contains(got, fmt.Sprintf("%q", tt.pattern)) {
					t.Errorf("AllowOrigins(%q) panics with %q, want the pattern and %q", tt.pattern, got, tt.want)
				}
			}()
			realtime.AllowOrigins("https://fine.example", tt.pattern)
		}()
	}
}

// Whatever the Origin, an accepted one belongs to an allowed domain as another
// parser sees it.
func FuzzAllowOrigins(f *testing.F) {
	for _, s := range []string{
		"https://app.example.com", "https://a.b.example.com:443", "http://localhost:3000", "http://[::1]:3000", "null",
		"https://example.com", "https://evil-example.com", "https://example.com.evil.org", "https://app.example.com@evil.org",
		"https://evil.org/.example.com", "https://evil.org?.example.com", "https://evil.org#.example.com",
		`https://evil.org\.example.com`, "https://evil.org\x00.example.com", "https://evil.org%00.example.com",
		"https://evil.org,https://a.example.com", "https://[::1]a.example.com", "javascript://a.example.com",
	} {
		f.Add(s)
	}
	check := realtime.AllowOrigins("https://*.example.com", "http://localhost:*", "http://[::1]:3000")
	f.Fuzz(func(t *testing.T, s string) {
		r := originRequest("example.com")
		r.Header["Origin"] = []string{s}
		if !check(r) {
			return
		}
		u, err := url.Parse(s)
		if err != nil {
			t.Fatalf("accepts %q, which is no URL: %v", s, err)
		}
		if u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#") {
			t.Errorf("accepts %q, which is more than an origin", s)
		}
		u.Scheme = cmp.Or(map[string]string{"ws": "http", "wss": "https"}[u.Scheme], u.Scheme)
		switch host := strings.ToLower(u.Hostname()); {
		case u.Scheme == "https" && strings.HasSuffix(host, ".example.com") && (u.Port() == "" || strings.TrimLeft(u.Port(), "0") == "443"):
		case u.Scheme == "http" && host == "localhost":
		case u.Scheme == "http" && strings.Trim(host, "0:") == "1" && strings.TrimLeft(u.Port(), "0") == "3000": // ::1
		default:
			t.Errorf("accepts %q, whose scheme, host and port are %q, %q and %q", s, u.Scheme, host, u.Port())
		}
	})
}

// Without a word of a proxy or the browser an accepted Origin is that of Host,
// as another parser sees it, and what one would call malformed is refused.
func FuzzSameOrigin(f *testing.F) {
	f.Add("https://example.com", "example.com")
	f.Add("https://example.com:443", "EXAMPLE.com")
	f.Add("http://[::1]:80", "[::1]")
	f.Add("https://example.com@evil.org", "example.com")
	f.Add("null", "null")
	f.Fuzz(func(t *testing.T, origin, host string) {
		r := originRequest(host)
		r.Header["Origin"] = []string{origin}
		if !realtime.SameOrigin(r) {
			return
		}
		o, err := url.Parse(origin)
		if err != nil {
			t.Fatalf("accepts %q, which is no URL: %v", origin, err)
		}
		h, err := url.Parse(o.Scheme + "://" + host)
		if err != nil {
			t.Fatalf("accepts Host %q, which is none: %v", host, err)
		}
		if o.User != nil || o.Path != "" || o.RawQuery != "" || o.ForceQuery || strings.Contains(origin, "#") || h.Host != host {
			t.Errorf("accepts Origin %q for Host %q", origin, host)
		}
		if !strings.HasPrefix(o.Host, "[") && !strings.EqualFold(o.Hostname(), h.Hostname()) {
			t.Errorf("accepts Origin %q for Host %q", origin, host)
		}
	})
}

// TestSetCheckOrigin runs alone: what it sets belongs to the whole package.
func TestSetCheckOrigin(t *testing.T) {
	t.Cleanup(func() { realtime.SetCheckOrigin(nil) })
	yes := func(*http.Request) bool { return true }
	no := func(*http.Request) bool { return false }
	tests := []struct {
		name     string
		hub, pkg func(*http.Request) bool
		refused  bool
	}{
		{"default", nil, nil, false},
		{"package refuses", nil, no, true},
		{"package accepts", nil, yes, false},
		{"hub refuses", no, yes, true},
		{"hub accepts", yes, no, false},
		{"reset", nil, nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				realtime.SetCheckOrigin(tt.pkg)
				hub := realtime.NewHub()
				hub.CheckOrigin = tt.hub
				s := newPipeSite(t, hub)
				conn, resp, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{
					HTTPClient: s.httpClient(),
					HTTPHeader: http.Header{"Origin": {"https://example.com"}},
				})
				if err == nil {
					defer conn.CloseNow()
				}
				want := http.StatusSwitchingProtocols
				if tt.refused {
					want = http.StatusForbidden
				}
				if resp == nil || resp.StatusCode != want {
					t.Errorf("answered %v (%v), want %d", resp, err, want)
				}
			})
		})
	}
}

// The log says which origin was refused, as far as it matters.
func TestRefusedOriginIsLogged(t *testing.T) {
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.CheckOrigin = func(*http.Request) bool { return false }
	srv := httptest.NewServer(hub)
	defer srv.Close()
	long := "https://" + strings.Repeat("x", 4000) + "\u2028 level=ERROR"
	_, resp, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {long}}})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %v, want 403", err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	got, origin := lines.String(), "origin=https://"+strings.Repeat("x", 256-len("https://"))+"… "
	if !strings.Contains(got, "origin refused") || !strings.Contains(got, origin) || !strings.Contains(got, "host=127.0.0.1:") || len(got) > 1000 || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q", got)
	}
}

// A CheckOrigin that panics refuses the client.
func TestCheckOriginPanics(t *testing.T) {
	hub := realtime.NewHub()
	var lines safeBuffer
	hub.Logger = textLogger(&lines)
	hub.CheckOrigin = func(*http.Request) bool { panic("oh no") }
	rec := httptest.NewRecorder()
	if err := realtime.Upgrade(rec, handshakeRequest(t), hub); err == nil || rec.Code != 500 || strings.Contains(rec.Body.String(), "oh no") {
		t.Errorf("answered %d %q, %v; want 500 and an error", rec.Code, rec.Body, err)
	}
	if err := hub.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if st := hub.Stats(); st.Panics != 1 || st.Refused != 1 {
		t.Errorf("Stats() = %+v, want 1 panic, 1 refused", st)
	}
	if got := lines.String(); !strings.Contains(got, "CheckOrigin panicked") || !strings.Contains(got, "origin_test.go") {
		t.Errorf("logged %q; want the panic with its stack", got)
	}
}
