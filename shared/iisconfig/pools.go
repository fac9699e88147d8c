package iisconfig

import "strings"

// poolServes names, for each application pool that Exchange's setup makes, the directories of the applications that setup puts
// into it, and where several applications share a directory their paths. Source: applicationHost.config of Exchange 2019.
var poolServes = map[string][]struct {
	dir   string
	paths []string
}{
	"msexchangeowaapppool":                {{frontEnd + "owa", []string{"/owa", "/owa/integrated", "/owa/oma"}}, {backEnd + "owa", []string{"/owa"}}},
	"msexchangeowacalendarapppool":        {{frontEnd + "owa", []string{"/owa/calendar"}}, {backEnd + "owa", []string{"/owa/calendar"}}},
	"msexchangeecpapppool":                {{frontEnd + "ecp", nil}, {backEnd + "ecp", nil}},
	"msexchangeoabapppool":                {{frontEnd + "oab", nil}, {backEnd + "oab", nil}},
	"msexchangeservicesapppool":           {{frontEnd + "ews", nil}, {backEnd + `exchweb\ews`, nil}},
	"msexchangeautodiscoverapppool":       {{frontEnd + "autodiscover", nil}, {backEnd + "autodiscover", nil}},
	"msexchangesyncapppool":               {{frontEnd + "sync", nil}, {backEnd + "sync", nil}},
	"msexchangerestfrontendapppool":       {{frontEnd + "rest", nil}},
	"msexchangerestapppool":               {{backEnd + "rest", nil}},
	"msexchangepowershellfrontendapppool": {{frontEnd + "powershell", nil}},
	"msexchangepowershellapppool":         {{backEnd + "powershell-proxy", nil}},
	"msexchangemapifrontendapppool":       {{frontEnd + "mapi", nil}},
	"msexchangemapimailboxapppool":        {{backEnd + `mapi\emsmdb`, nil}},
	"msexchangemapiaddressbookapppool":    {{backEnd + `mapi\nspi`, nil}},
	"msexchangerpcproxyfrontendapppool":   {{frontEnd + "rpc", nil}},
	"msexchangepushnotificationsapppool":  {{backEnd + "pushnotifications", nil}},
}

// AppsOfKind lists the applications that Exchange's setup puts into a pool, whichever pool serves them today. It is empty for a
// pool that setup does not make.
func (s *Server) AppsOfKind(pool string) []*App {
	var out []*App
	for _, kind := range poolServes[strings.ToLower(pool)] {
		for _, site := range s.Sites {
			for _, a := range site.Apps {
				dir := strings.TrimRight(strings.ToLower(strings.ReplaceAll(a.Dir, "/", `\`)), `\`)
				if strings.HasSuffix(dir, kind.dir) && (kind.paths == nil || containsFold(kind.paths, a.Path)) {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

func containsFold(list []string, s string) bool {
	for _, x := range list {
		if strings.EqualFold(x, s) {
			return true
		}
	}
	return false
}
