package simulate

import "testing"

func TestAClientsNetworkIsReadFromEveryFormOfRFC7239(t *testing.T) {
	t.Parallel()
	for client, want := range map[string]string{
		"192.0.2.43":                         "192.0.2.0/24",
		"192.0.2.43:47011":                   "192.0.2.0/24",
		"192.0.2.43:_port":                   "192.0.2.0/24",
		"[2001:db8:cafe::17]:4711":           "2001:db8:cafe::/48",
		"[2001:db8:cafe::17]":                "2001:db8:cafe::/48",
		`"[2001:db8:cafe::17]:4711"`:         "2001:db8:cafe::/48",
		"2001:db8:cafe::17":                  "2001:db8:cafe::/48",
		"2001:DB8:cafe:0:0:0:0:17":           "2001:db8:cafe::/48",
		"2001:db8:cafe:0:0:0:0:17:4711":      "2001:db8:cafe::/48",
		"fe80::1%12":                         "fe80::/48",
		"::ffff:192.0.2.43":                  "192.0.2.0/24",
		"[::ffff:192.0.2.43]:80":             "192.0.2.0/24",
		"203.0.113.9:33453,+10.0.0.7":        "203.0.113.0/24",
		"203.0.113.9,10.0.0.7":               "203.0.113.0/24",
		"203.0.113.9 , 10.0.0.7":             "203.0.113.0/24",
		",+203.0.113.9":                      "203.0.113.0/24",
		"-,203.0.113.9":                      "203.0.113.0/24",
		"[2001:db8:1::7]:443,+[2001:db8::8]": "2001:db8:1::/48",
		"unknown":                            unknownNetwork,
		"unknown:80":                         unknownNetwork,
		"unknown,+10.0.0.7":                  unknownNetwork,
		"_hidden":                            obfuscatedNetwork,
		"_SEVKISEK:_p":                       obfuscatedNetwork,
		"":                                   unknownNetwork,
		",,,":                                unknownNetwork,
		"[2001:db8::17":                      unknownNetwork,
		"[2001:db8::17]4711":                 unknownNetwork,
		"192.0.2.43:port":                    unknownNetwork,
		"192.0.2.43:123456":                  unknownNetwork,
		"999.0.2.43":                         unknownNetwork,
		"'or+1=1":                            unknownNetwork,
	} {
		if got := network(client); got != want {
			t.Errorf("%q: %s, want %s", client, got, want)
		}
	}
}
