package realtime

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// packageCheck is the check that SetCheckOrigin was last given.
var packageCheck atomic.Pointer[func(r *http.Request) bool]

// SetCheckOrigin sets the check for all hubs without a [Hub.CheckOrigin]. The
// check reports whether to accept a request. Nil, the default, accepts all: any
// page that a user visits can then connect with the user's cookies. If a hub
// knows its users by cookies, this is cross-site WebSocket hijacking. Most
// callers should set [SameOrigin] or a check made by [AllowOrigins].
//
// The check runs on the request's goroutine and may block. SetCheckOrigin is
// safe for concurrent use. Clients that are connected stay.
func SetCheckOrigin(check func(r *http.Request) bool) {
	packageCheck.Store(&check)
}

// originCheck returns own, or else the package's check. Nil accepts all.
func originCheck(own func(*http.Request) bool) func(*http.Request) bool {
	if own != nil {
		return own
	}
	if check := packageCheck.Load(); check != nil {
		return *check
	}
	return nil
}

// SameOrigin reports whether r comes from a page of the same site: its Origin
// has the host and port that the browser asked for. Use it in [SetCheckOrigin]
// and [Hub.CheckOrigin] if pages and hub have one name, else [AllowOrigins].
//
// A request without an Origin is accepted: it comes from no browser, or from an
// EventSource on its own site. An Origin that is "null", malformed or repeated
// is refused. A missing port is the default of the Origin's scheme, since
// behind a proxy the scheme of r may differ. Some programs send ws or wss as
// the Origin's scheme: it counts as http or https.
//
// SameOrigin works behind proxies without settings. It can trust the headers
// below, because an attacker is a page of another site in the user's browser. A
// page can't set headers of a WebSocket handshake or an EventSource. Its fetch
// can, but only after a CORS preflight, which this package never grants for
// these headers. A program can forge them, but also the Origin, and has no
// cookies of the user. So an origin is the same if any of these says so:
//
//   - Sec-Fetch-Site is same-origin, the browser's own word, as for
//     [http.CrossOriginProtection]. Chromium sends none with a WebSocket.
//   - Host has the Origin's host and port.
//   - The first X-Forwarded-Host has them, or the first host of Forwarded (RFC
//     7239), for proxies that write their own name into Host. X-Forwarded-Port
//     gives a port that a proxy cut off ("$host" in nginx).
//
// If a proxy forwards none of these, browsers are refused: use AllowOrigins.
//
// A page that came over http is refused if the browser asked over TLS: somebody
// on the network could have written it. The first X-Forwarded-Proto tells, or
// else Forwarded's proto, or else [http.Request.TLS]. The opposite is accepted:
// many proxies call a request http that came over TLS elsewhere.
//
// SameOrigin doesn't check the name itself: an attacker's name that resolves to
// the server's address passes (DNS rebinding). Use AllowOrigins for a server
// that trusts its network, as on localhost.
func SameOrigin(r *http.Request) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return true
	}
	o, ok := parseOrigin(values[0])
	if !ok || len(values) > 1 || o.scheme != "http" && o.scheme != "https" {
		return false
	}
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) == 1 && site[0] == "same-origin" {
		return true
	}
	if o.scheme == "http" && overTLS(r) {
		return false
	}
	return asksFor(o, r.Host, r) ||
		asksFor(o, firstOf(r, "X-Forwarded-Host"), r) ||
		asksFor(o, firstForwarded(r, "host"), r)
}

// asksFor reports whether hostport, according to r or a proxy, is o's.
func asksFor(o origin, hostport string, r *http.Request) bool {
	host, port, ok := parseHost(hostport)
	if !ok || host != o.host {
		return false
	}
	if port != 0 {
		return port == o.port
	}
	return o.port == defaultPorts[o.scheme] || firstOf(r, "X-Forwarded-Port") == strconv.Itoa(int(o.port))
}

// overTLS reports whether the browser is known to have asked over TLS.
func overTLS(r *http.Request) bool {
	scheme := cmp.Or(firstOf(r, "X-Forwarded-Proto"), firstForwarded(r, "proto"))
	if scheme == "" {
		return r.TLS != nil
	}
	// Traefik forwards the WebSocket's own scheme.
	return strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "wss")
}

// firstOf returns the first entry of a header's list. Each proxy appends, so it
// is the nearest to the browser.
func firstOf(r *http.Request, header string) string {
	first, _, _ := strings.Cut(r.Header.Get(header), ",")
	return strings.TrimSpace(first)
}

// firstForwarded returns the first value of param in r's Forwarded header (RFC
// 7239 §4), whichever proxy wrote it: one that keeps Host may omit it.
func firstForwarded(r *http.Request, param string) string {
	for element := range listed(r.Header.Values("Forwarded")) {
		for more := true; more; {
			var pair string
			pair, element, more = cutUnquoted(element, ";")
			name, value, _ := strings.Cut(pair, "=")
			if strings.EqualFold(strings.TrimSpace(name), param) {
				return strings.Trim(value, " \t\"") // no host and no scheme needs an escape
			}
		}
	}
	return ""
}

// AllowOrigins returns a check for [SetCheckOrigin] and [Hub.CheckOrigin]. It
// accepts pages whose origin matches a pattern, and requests without an Origin,
// as [SameOrigin] does. Proxies make no difference. The site's own pages need a
// pattern, too. Without patterns every page is refused.
//
// A pattern is an origin as a browser sends it, in any letter case:
//
//	https://app.example.com     this host, on the scheme's default port
//	http://localhost:3000       this port
//	http://localhost:*          any port
//	https://*.example.com       any subdomain, at any depth; not example.com
//	file://                     apps that load their pages from files, literally
//	null                        pages without an origin, literally
//
// "file://" comes from the web views of some apps and from some devices, whoever
// made them. "null" is for testing: any site can make such a page with a sandboxed
// frame. An Origin of ws or wss, which no browser sends, is that of http or https.
//
// AllowOrigins panics if a pattern is malformed. Otherwise only users would
// find a pattern that matches nothing.
func AllowOrigins(patterns ...string) func(*http.Request) bool {
	allowed := make([]originPattern, len(patterns))
	for i, s := range patterns {
		p, cure := parsePattern(s)
		if cure != "" {
			panic(fmt.Sprintf("realtime: AllowOrigins: pattern %q: %s", s, cure))
		}
		allowed[i] = p
	}
	return func(r *http.Request) bool {
		values := r.Header.Values("Origin")
		if len(values) == 0 {
			return true
		}
		o, ok := parseOrigin(values[0])
		if !ok || len(values) > 1 {
			return false
		}
		return slices.ContainsFunc(allowed, func(p originPattern) bool { return p.matches(o) })
	}
}

// An originPattern is an origin with wildcards.
type originPattern struct {
	origin          // with subdomains, the host is what follows "*"
	subdomains bool // any, but not the domain itself
	anyPort    bool
}

func (p originPattern) matches(o origin) bool {
	if p.scheme != o.scheme || !p.anyPort && p.port != o.port {
		return false
	}
	if p.subdomains {
		// The host of p starts with a dot, as no origin's host does.
		return strings.HasSuffix(o.host, p.host)
	}
	return p.host == o.host
}

// parsePattern parses a pattern. If s is none, cure says what to write instead.
func parsePattern(s string) (p originPattern, cure string) {
	if o, ok := hostless[s]; ok {
		return originPattern{origin: o}, ""
	}
	if s == "*" {
		return p, "to allow all origins leave the check nil"
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok && s != "" {
		return p, fmt.Sprintf("an origin has a scheme: write %q", "https://"+s)
	}
	if strings.EqualFold(scheme, "ws") || strings.EqualFold(scheme, "wss") {
		return p, fmt.Sprintf("an origin has the scheme of the page, not of the WebSocket: write %q", "http"+strings.ToLower(scheme[2:])+"://"+rest)
	}
	if end := strings.IndexAny(rest, "/?#"); end > 0 {
		return p, fmt.Sprintf("an origin ends with its host or port: write %q", scheme+"://"+rest[:end])
	}
	rest, p.anyPort = strings.CutSuffix(rest, ":*")
	rest, p.subdomains = strings.CutPrefix(rest, "*.")
	_, port, _ := parseHost(rest)
	p.origin, ok = parseOrigin(scheme + "://" + rest)
	if !ok || p.anyPort && port != 0 || p.subdomains && rest[0] == '[' {
		return p, `an origin is a scheme, "://", a host in ASCII (an IPv6 address in brackets) and perhaps a port; ` +
			`"*." may stand before a domain, and "*" for the port`
	}
	if p.subdomains {
		p.host = "." + p.host
	}
	return p, ""
}

// An origin identifies the site of a page (RFC 6454 §4).
type origin struct {
	scheme string // in lower case
	host   string // in lower case, never empty; an IPv6 address in brackets
	port   uint16 // the scheme's default if none was written; 0 if it has none
}

// hostless are the origins without a host: that of pages that share theirs with no
// other, and that of an app's files.
var hostless = map[string]origin{"null": {scheme: "null"}, "file://": {scheme: "file"}}

var defaultPorts = map[string]uint16{"http": 80, "https": 443}

// pageSchemes are the schemes that a page would have. Some programs write that
// of the WebSocket into Origin. No browser does.
var pageSchemes = map[string]string{"ws": "http", "wss": "https"}

// parseOrigin parses an Origin header. It accepts only what browsers send (RFC
// 6454 §6.2), and the schemes of pageSchemes. url.Parse would accept user names
// and paths, and a check that overlooks them is a hole.
func parseOrigin(s string) (o origin, ok bool) {
	if o, ok := hostless[s]; ok {
		return o, true
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" || len(s) > maxOriginBytes {
		return origin{}, false
	}
	o.scheme = strings.ToLower(scheme)
	for i, c := range []byte(o.scheme) {
		if !('a' <= c && c <= 'z' || i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return origin{}, false
		}
	}
	o.scheme = cmp.Or(pageSchemes[o.scheme], o.scheme)
	o.host, o.port, ok = parseHost(rest)
	o.port = cmp.Or(o.port, defaultPorts[o.scheme])
	return o, ok
}

// maxOriginBytes is more than an origin can have: a name has at most 253 (RFC
// 1035 §2.3.4).
const maxOriginBytes = 512

// parseHost parses a host as an origin has it, and a port, which is 0 if none.
func parseHost(s string) (host string, port uint16, ok bool) {
	if len(s) > maxOriginBytes {
		return "", 0, false
	}
	host = s
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		host, port = s[:i], uint16(n)
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		addr, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, false
		}
		return "[" + addr.String() + "]", port, true
	}
	if host == "" || host[0] == '.' || strings.Contains(host, "..") {
		return "", 0, false
	}
	// Browsers send international names in ASCII (xn--…).
	for _, c := range []byte(host) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return "", 0, false
		}
	}
	return strings.ToLower(host), port, true
}
