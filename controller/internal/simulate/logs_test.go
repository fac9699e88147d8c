package simulate

import (
	"strings"
	"testing"
)

const advancedHead = "#Software: IIS Advanced Logging Module\n#Version: 1.0\n" +
	"#Fields:  date-local time-local s-ip cs-method cs-uri-stem cs-uri-query " +
	"s-port cs-username c-ip cs(User-Agent) cs(Referer) cs(Host) sc-status sc-substatus sc-win32-status TimeTakenMS\n"

// words are those that M1 looks for, as a query.
const words = "@a.example/powershell/?x=autodiscover"

// play is M1 over one log.
func play(t *testing.T, text string) *Report {
	t.Helper()
	r, err := sim(t, "M1").Logs(t.Context(), []string{write(t, "u_ex1.log", text)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAppendedTextIsJudgedWithAndWithoutIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		query            string
		blocked, depends int64
	}{
		"the client's own query":                          {words, 1, 0},
		"words before what Exchange appends":              {words + "&CorrelationID=<empty>;&cafeReqId=7f;&encoding=;", 1, 0},
		"words before appended text with blanks":          {words + "&CorrelationID=<empty>;&cafeReqId=7f; ADLatency=0; x", 1, 0},
		"no words":                                        {"a=1&CorrelationID=<empty>;&cafeReqId=7f; ADLatency=0;", 0, 0},
		"a parameter of the client's before the words":    {"a=1&ActID=b" + words, 1, 1},
		"the first parameter is named like one":           {"ActID=b" + words, 1, 1},
		"all of a correlation before the words":           {"a=1&CorrelationID=<empty>;&cafeReqId=1;&encoding=;&ActID=" + words, 1, 1},
		"words on both sides":                             {"x=autodiscover&ClientId=1&y=powershell", 1, 1},
		"appended text with quotes and semicolons":        {`SoapAction="Get";RpcC=1; "autodiscover powershell";`, 1, 1},
		"a parameter of no known name with a semicolon":   {"a=1&Unheard=powershell;&x=autodiscover", 1, 1},
		"a blank in no known parameter":                   {"a=1&unheard=powershell x autodiscover", 1, 1},
		"a name that only begins like one of Exchange's":  {"a=1&ActIDs=" + words, 1, 0},
		"one parameter that ends in appended text":        {words + "SoapAction=Get; ADLatency=0;", 1, 1},
		"as many parameters as a query can hold":          {strings.Repeat("&ActID=1;", 1500) + words, 1, 1},
		"appended text with blanks at its end":            {words + "&ActID=1; ", 1, 0},
		"several blanks in a row inside of appended text": {words + "&ActID=1;   x  y", 1, 0},
	} {
		r := play(t, head+line("GET", "/Autodiscover/x", c.query, "192.0.2.7")+line("GET", "/owa/", "-", "192.0.2.8"))
		// The path has one of the words that M1 looks for; the query must have the other.
		if m1 := r.Rules[0]; r.Requests != 2 || m1.Blocked != c.blocked || m1.Depends != c.depends || len(m1.SamplesDepending) != int(c.depends) {
			t.Errorf("%s: %d requests, %+v, %+v", name, r.Requests, m1, r.DamagedLines)
		}
	}
}

func TestThatPatternsWhichLookForTheEndOfTheQueryAreTriedWithEachEndItMayHave(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		condition        string
		growing          bool
		query            string
		blocked, depends int64
	}{
		"the end is between two parameters": {`<add input="{QUERY_STRING}" pattern="=evil$"/>`, false, "a=1&ActID=evil&cafeReqId=2;", 1, 1},
		"the end is before the first":       {`<add input="{QUERY_STRING}" pattern="=evil$"/>`, false, "a=evil&ActID=1;&cafeReqId=2;", 1, 1},
		"the end is the query's":            {`<add input="{QUERY_STRING}" pattern="=evil$"/>`, false, "a=evil", 1, 0},
		"what must not be there":            {`<add input="{QUERY_STRING}" pattern="allowed" negate="true"/>`, false, "a=1&ActID=allowed", 1, 1},
		"a negative look-ahead":             {`<add input="{REQUEST_URI}" pattern="^(?!.*allowed)"/>`, false, "a=1&ActID=allowed", 1, 1},
		"a capture of another condition": {`<add input="{QUERY_STRING}" pattern="a=(.*)"/><add input="{C:1}" pattern="1"/>`,
			false, "a=1&ActID=2", 1, 0},
		"one condition of two": {`<add input="{HTTP_HOST}" pattern="^$"/><add input="{ToLower:{REQUEST_URI}}" pattern="evil"/>`,
			true, "a=1&ActID=evil", 0, 0},
		"nothing about the query": {`<add input="{URL}" pattern="x$"/>`, true, "a=1&ActID=2", 1, 0},
	} {
		s := ruled(t, "/", `<rule name="r"><match url=".*"/><conditions>`+c.condition+`</conditions><action type="AbortRequest"/></rule>`)
		r, err := s.Logs(t.Context(), []string{write(t, "u_ex1.log", head+line("GET", "/x", c.query, "192.0.2.7"))}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x := r.Rules[0]; s.rules[0].growing != c.growing || x.Blocked != c.blocked || x.Depends != c.depends {
			t.Errorf("%s: growing %v, %+v", name, s.rules[0].growing, x)
		}
	}
}

func TestColumnsTornApartByBlanksAreFoundFromThoseAroundThem(t *testing.T) {
	t.Parallel()
	const f = "#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query " +
		"s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status time-taken X-Forwarded-For\n"
	const before, url = "2026-11-20 08:00:01 192.0.2.1 GET ", "/autodiscover/autodiscover.json "
	for name, x := range map[string]string{
		"none":                        words + " 443 - 192.0.2.7 Agent - 200 1 203.0.113.9",
		"the query":                   words + "&ActID=1; a b  c 443 - 192.0.2.7 Agent - 200 1 203.0.113.9",
		"the user's name":             words + ` 443 CONTOSO\John van Doe 192.0.2.7 Agent - 200 1 203.0.113.9`,
		"the forwarded addresses":     words + " 443 - 192.0.2.7 Agent - 200 1 203.0.113.9, 10.0.0.1, 10.0.0.2",
		"the agent":                   words + " 443 - 192.0.2.7 Agent (X; Y) Z https://a.example/ 200 1 203.0.113.9",
		"the query, and others":       words + "&ActID=1; a 443 b 443 John Doe 192.0.2.7 Agent - 200 1 203.0.113.9, 10.0.0.1",
		"numbers inside of the query": words + "&ActID=1; 443 - 200 443 - 192.0.2.7 Agent - 200 1 203.0.113.9",
	} {
		r := play(t, f+before+url+x+"\n")
		if m1 := r.Rules[0]; r.Requests != 1 || m1.Blocked != 1 || m1.Depends != 0 || m1.Networks["203.0.113.0/24"] != 1 {
			t.Errorf("%s: %+v %+v", name, r, m1)
		}
	}
	for name, x := range map[string]string{
		"fewer columns":              words + " 443 - 192.0.2.7 Agent - 200 1",
		"half a line":                words[:9],
		"shifted columns":            "a b 443 - 192.0.2.7 Agent - 200 1",
		"nothing that tells them by": "a b c d e f g h i j k l m n o p",
	} {
		if r := play(t, f+before+url+x+"\n"); r.Requests != 0 || r.Unreadable != 1 || len(r.DamagedLines) != 1 || r.DamagedLines[0].Line != 2 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestFieldsMayChangeInsideOfAFile(t *testing.T) {
	t.Parallel()
	r := play(t, "#Fields: cs-method cs-uri-stem cs-uri-query sc-status\n#Software: Microsoft Internet Information Services 10.0\n"+
		"GET /autodiscover/x "+words+" 200\n"+
		"#Fields: cs-uri-query cs-uri-stem\n"+words+" /autodiscover/x\n"+
		"#Fields: date time\n2026-11-20 08:00:01\n"+
		head+line("GET", "/autodiscover/x", words, "192.0.2.7")+
		advancedHead+`2026-11-20 08:00:01.1 - GET /autodiscover/x `+words+` 443 - "192.0.2.7" "A ""b"" c" - "mail.example" 200 0 0 1`+"\n")
	if m1 := r.Rules[0]; r.Requests != 4 || m1.Blocked != 4 || r.Unreadable != 1 || r.DamagedFiles != 1 || m1.Agents[`A "b" c`] != 1 {
		t.Errorf("%+v %+v", r, m1)
	}
	if what := r.Unread[0].What; !strings.Contains(what, "cs-uri-stem") {
		t.Error(what)
	}
}

func TestAdvancedLoggingIsReadWithItsQuotesAndTabs(t *testing.T) {
	t.Parallel()
	blanks := `2026-11-20 08:00:01.1 - GET /autodiscover/x ` + words +
		`&ActID=1; "a b; 443 - "192.0.2.7" "Agent (X; Y)" "http://a.example/?b c" "mail.example" 200 0 0 1` + "\n"
	tabs := strings.Join([]string{"2026-11-20", "08:00:01.1", "-", "GET", "/autodiscover/x", words,
		"443", "-", `"192.0.2.7"`, `"Agent (X; Y)"`, "-", `"mail.example"`, "200", "0", "0", "1"}, "\t") + "\n"
	half := `2026-11-20 08:00:01.1 - GET /autodiscover/x ` + words + ` 443 - "192.0.2.7" "Agent (X` + "\n"
	for name, head := range map[string]string{
		"named by #Software":  advancedHead,
		"named by its fields": advancedHead[strings.Index(advancedHead, "#Fields"):],
		"named by nothing but use": strings.NewReplacer("date-local time-local", "date time", "TimeTakenMS", "time-taken").
			Replace(advancedHead[strings.Index(advancedHead, "#Fields"):]),
	} {
		text := head + tabs + half
		if strings.Contains(head, "TimeTakenMS") {
			text += blanks
		} else {
			text += strings.Replace(blanks, `&ActID=1; "a b;`, "", 1)
		}
		r := play(t, text)
		if m1 := r.Rules[0]; r.Requests != 2 || r.Unreadable != 1 || m1.Blocked != 2 ||
			m1.Agents["Agent (X; Y)"] != 2 || m1.Networks["192.0.2.0/24"] != 2 {
			t.Errorf("%s: %+v %+v", name, r, m1)
		}
	}
}

func TestHeadersOfTheLogAreWhatTheRulesSee(t *testing.T) {
	t.Parallel()
	s := ruled(t, "/", `<rule name="r"><match url=".*"/><conditions>`+
		`<add input="{HTTP_X_FORWARDED_FOR}" pattern="^203\.0\.113\.9, 10\.0\.0\.1$"/><add input="{REMOTE_ADDR}" pattern="^192\.0\.2\.7$"/>`+
		`<add input="{HTTP_USER_AGENT}" pattern="^An Agent$"/>`+
		`<add input="{HTTP_HOST}" pattern="^mail\.example$"/><add input="{HTTP_ACCEPT}" pattern="^x$"/>`+
		`</conditions><action type="AbortRequest"/></rule>`)
	r, err := s.Logs(t.Context(), []string{write(t, "u_ex1.log",
		"#Fields: cs-uri-stem c-ip X-Forwarded-For cs(User-Agent) cs(Host) cs(Accept)\n"+
			"/a 192.0.2.7 203.0.113.9,+10.0.0.1 An+Agent mail.example x\n")}, nil)
	if err != nil || r.Rules[0].Blocked != 1 {
		t.Errorf("%+v %v", r.Rules[0], err)
	}
	// Without the query nobody knows the whole URL.
	r, err = sim(t, "M1").Logs(t.Context(), []string{write(t, "u_ex1.log", "#Fields: cs-uri-stem\n/autodiscover\n")}, nil)
	if err != nil || r.Rules[0].Unjudged != 1 {
		t.Errorf("%+v %v", r.Rules[0], err)
	}
}
