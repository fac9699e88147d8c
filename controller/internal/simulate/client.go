package simulate

import (
	"net/netip"
	"strings"
)

// Names for clients whose network is not known.
const (
	unknownNetwork    = "unknown"
	obfuscatedNetwork = "obfuscated (a proxy hides the address)"
)

// network is a client's /24 or /48, from c-ip or from the first name in X-Forwarded-For: the proxies behind it are not the client.
func network(client string) string {
	for client != "" {
		node, rest, _ := strings.Cut(client, ",")
		if node = strings.Trim(node, " +\t\""); node != "" && node != "-" {
			return nodeNetwork(node)
		}
		client = rest
	}
	return unknownNetwork
}

// nodeNetwork is the network of a node as RFC 7239, section 6, writes it: an IPv4 address, an IPv6 address in brackets,
// "unknown" or an obfuscated name that begins with an underscore, each with or without a port. Proxies also write IPv6 addresses
// without brackets, and brackets around no port.
func nodeNetwork(node string) string {
	host := node
	if in, ok := strings.CutPrefix(node, "["); ok {
		end := strings.IndexByte(in, ']')
		if end < 0 || !isPort(in[end+1:]) {
			return unknownNetwork
		}
		host = in[:end]
	} else if _, err := netip.ParseAddr(node); err != nil {
		if i := strings.LastIndexByte(node, ':'); i >= 0 && isPort(node[i:]) {
			host = node[:i]
		}
	}
	if strings.HasPrefix(host, "_") {
		return obfuscatedNetwork
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return unknownNetwork
	}
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return unknownNetwork
	}
	return p.String()
}

// isPort says whether a text is nothing, or a colon with a port: one to five digits, or an obfuscated one.
func isPort(s string) bool {
	if s == "" {
		return true
	}
	p, ok := strings.CutPrefix(s, ":")
	if name, hidden := strings.CutPrefix(p, "_"); hidden {
		return ok && name != ""
	}
	return ok && len(p) <= 5 && isNumber([]byte(p))
}
