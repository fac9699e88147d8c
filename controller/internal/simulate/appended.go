package simulate

import (
	"slices"
	"strings"
)

// Exchange appends text to the query that IIS logs, which the client never sent and which the rules never see. A client can send
// a parameter of the same name, so that a log does not say where the client's query ends. These are the names that are known.
// Sources: IIS logs of Exchange 2013 to 2019 front ends and back ends in public threads; plaso issue 3529.
var appendedNames = map[string]bool{
	"CorrelationID": true, "cafeReqId": true, "ActID": true, "encoding": true, "ClientId": true, "ClientRequestId": true, "RequestId": true,
	"ReqId": true, "LogoffReason": true, "Log": true, "SoapAction": true, "ADLatency": true, "ADRequests": true, "MailboxRPCRequests": true,
	"MailboxRPCLatency": true, "prfltncy": true, "prfrpccnt": true, "prfrpcltncy": true, "prfldpcnt": true, "prfldpltncy": true,
	"prfavlcnt": true, "prfavlltncy": true,
}

// joined are names that Exchange appends without an ampersand, directly behind the query.
var joined = []string{"SoapAction=", "MailboxRPCRequests="}

// maxEnds bounds at how many places the client's query may end. Exchange appends about a dozen parameters; of more, the first
// and the last half of this bound are tried.
const maxEnds = 32

// clientEnds gives the places at which Exchange's text may begin, so that the client's query may end there: before a parameter of
// a name that Exchange uses, before one that ends with a semicolon, as Exchange's do, and before one with a blank, which no
// client can send. The smallest is first; the end of the query itself is not among them.
func clientEnds(query string) []int {
	var ends []int
	for at := 0; at < len(query); {
		end := len(query)
		if i := strings.IndexByte(query[at+1:], '&'); i >= 0 {
			end = at + 1 + i
		}
		part := query[at:end]
		name, _, _ := strings.Cut(strings.TrimPrefix(part, "&"), "=")
		if appendedNames[name] || strings.HasSuffix(part, ";") || strings.Contains(part, " ") {
			ends = append(ends, at)
		}
		if i := strings.IndexByte(part, ' '); i > 0 {
			ends = append(ends, at+i)
		}
		at = end
	}
	for _, name := range joined {
		if i := strings.Index(query, name); i >= 0 {
			ends = append(ends, i)
		}
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	if len(ends) > maxEnds {
		ends = append(ends[:maxEnds/2], ends[len(ends)-maxEnds/2:]...)
	}
	return ends
}
