package effect

import "net/http"

// Sample is a legitimate request, as clients of an Exchange server send it every day. A mitigation must let each of them
// through.
type Sample struct {
	Attack
	// Response is what Exchange answers, without the headers that make no difference here.
	Response http.Header
	// Status of the answer.
	Status int
}

// Samples returns the legitimate requests by which a mitigation is judged before it is signed. Names and identifiers are
// examples. The forms are those of MS-OXDSCLI (Autodiscover), MS-ASCMD and MS-ASHTTP (ActiveSync), MS-OXCMAPIHTTP, MS-OXWOAB,
// MS-RPCH, the EWS and Exchange PowerShell references, and of what OWA's and ECP's own pages ask for.
func Samples() []Sample {
	out := make([]Sample, 0, len(samples))
	for _, s := range samples {
		a, err := parse(s.what, s.request, s.headers)
		if err != nil {
			continue // a test keeps the table well-formed
		}
		a.Name = s.what + " (" + s.request + ")"
		status, kind := http.StatusOK, s.answer
		switch kind {
		case "401":
			status, kind = http.StatusUnauthorized, ""
		case "302":
			status, kind = http.StatusFound, "text/html; charset=utf-8"
		}
		response := http.Header{}
		if kind != "" {
			response.Set("Content-Type", kind)
		}
		switch status {
		case http.StatusUnauthorized:
			response.Set("WWW-Authenticate", "Negotiate")
		case http.StatusFound:
			response.Set("Location", "https://mail.example/owa/")
			response.Set("Set-Cookie", "cadata=Vt0mfZk1+bq==; path=/; secure; HttpOnly")
		}
		out = append(out, Sample{Attack: a, Response: response, Status: status})
	}
	return out
}

const (
	htmlPage = "text/html; charset=utf-8"
	xmlText  = "text/xml; charset=utf-8"
	jsonText = "application/json; charset=utf-8"
	script   = "application/javascript"
	wbxml    = "application/vnd.ms-sync.wbxml"
)

var (
	browser = map[string]string{
		"User-Agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0",
		"Accept":     "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "Accept-Language": "en-GB,en;q=0.9"}
	signedIn = with(browser, "Cookie",
		"ClientId=0F3AB77C51D24E0C; cadata=Vt0mfZk1+bq==; cadataTTL=b0x9==; cadataKey=Pq7x==; cadataIV=kk3z==; cadataSig=zX81==; "+
			"X-OWA-CANARY=q3Xw_1JkTUe8pAAAAAAAAABQx.; X-BackEndCookie=S-1-5-21-1004336348-1177238915-682003330-1107=u56Lnp2ejJqBzp7NyJ3Kz87=; PrivateComputer=true",
		"Referer", "https://mail.example/owa/")
	admin = with(signedIn, "Cookie",
		"cadata=Vt0mfZk1+bq==; cadataTTL=b0x9==; cadataKey=Pq7x==; msExchEcpCanary=Bx81KkTU_e8p.; "+
			"X-BackEndCookie=S-1-5-21-1004336348-1177238915-682003330-500=u56L", "Referer", "https://mail.example/ecp/")
	form = with(browser, "Content-Type", "application/x-www-form-urlencoded", "Origin", "https://mail.example", "Cookie",
		"PBack=0; ClientId=0F3AB77C51D24E0C")
	ajax = with(signedIn, "Content-Type", jsonText, "X-OWA-CANARY", "q3Xw_1JkTUe8pAAAAAAAAABQx.", "Action", "FindItem",
		"X-Requested-With", "XMLHttpRequest")
	outlook = map[string]string{"User-Agent": "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.18129; Pro)",
		"X-User-Identity":      "erika@corp.example",
		"X-MapiHttpCapability": "1", "Authorization": "Negotiate YIIF"}
	ewsClient = map[string]string{"User-Agent": "MacOutlook/16.89 (Intel Mac OS X 14.5)", "Content-Type": xmlText,
		"Authorization": "NTLM TlRM"}
	phone = map[string]string{"User-Agent": "Apple-iPhone15C2/2201.87", "MS-ASProtocolVersion": "16.1", "Content-Type": wbxml,
		"Authorization": "Basic ZXJpa2E6", "X-MS-PolicyKey": "1307199584"}
	android = map[string]string{"User-Agent": "Android-Mail/2024.09", "MS-ASProtocolVersion": "14.1", "Content-Type": wbxml,
		"Authorization": "Basic ZXJpa2E6"}
	mapi = with(outlook, "Content-Type", "application/mapi-http", "X-RequestType", "Execute", "X-ClientInfo",
		"{2B1D7C40-61A4-4C43-9C84-0B7E2D4C8E4A}:120",
		"Cookie", "MapiContext=MAPIAAAAAPz1; MapiSequence=7-x0Q==; X-BackEndCookie=erika@corp.example=u56L")
	monitor = map[string]string{"User-Agent": "AMProbe/Local/ClientAccess"}
	remote  = map[string]string{"User-Agent": "Microsoft WinRM Client", "Content-Type": "application/soap+xml;charset=UTF-8",
		"Authorization": "Kerberos YIIF"}
)

// with adds headers, by name and value, to others.
func with(base map[string]string, add ...string) map[string]string {
	out := map[string]string{}
	for k, v := range base {
		out[k] = v
	}
	for i := 0; i+1 < len(add); i += 2 {
		out[add[i]] = add[i+1]
	}
	return out
}

// samples have the content type of the answer, or its status where that is another than 200.
var samples = []struct {
	what, request string
	headers       map[string]string
	answer        string
}{
	{"front page", "GET /", browser, "302"},

	{"sign-in to OWA", "GET /owa/", browser, "302"},
	{"sign-in page of OWA", "GET /owa/auth/logon.aspx?replaceCurrent=1&url=https%3a%2f%2fmail.example%2fowa%2f", browser, htmlPage},
	{"sign-in to OWA, the form", "POST /owa/auth.owa", form, "302"},
	{"theme of the sign-in page", "GET /owa/auth/15.2.1748/themes/resources/segoeui-regular.ttf", with(browser, "Cookie",
		"X-AnonResource=true"), "font/ttf"},
	{"script of the sign-in page", "GET /owa/auth/15.2.1748/scripts/premium/fexppw.js", browser, script},
	{"OWA", "GET /owa/", signedIn, htmlPage},
	{"OWA without a slash", "GET /owa", signedIn, "302"},
	{"OWA of a domain", "GET /owa/?realm=corp.example", signedIn, htmlPage},
	{"OWA, shared mailbox", "GET /owa/info@corp.example/?offline=disabled", signedIn, htmlPage},
	{"OWA, deep link", "GET /owa/?path=/calendar/view/Month", signedIn, htmlPage},
	{"OWA, start", "POST /owa/sessiondata.ashx?appcacheclient=0", ajax, jsonText},
	{"OWA, list of messages", "POST /owa/service.svc?action=FindItem&EP=1&ID=-34&AC=1", ajax, jsonText},
	{"OWA, notifications", "GET /owa/ev.owa2?ns=PendingRequest&ev=PendingNotificationRequest&UA=0&cid=4a2d5c1e-70f1-4a53-9a52-1d6f7b1f8c30",
		signedIn, "text/plain"},
	{"OWA, attachment", "GET /owa/service.svc/s/GetFileAttachment?id=AAMkADk3OTg%2B%2Fx0%3D&X-OWA-CANARY=q3Xw_1JkTUe8p.", signedIn,
		"application/pdf"},
	{"OWA, picture of a person", "GET /owa/service.svc/s/GetPersonaPhoto?email=max%40corp.example&UA=0&size=HR96x96", signedIn, "image/jpeg"},
	{"OWA, script", "GET /owa/prem/15.2.1748.10/scripts/boot.worldwide.0.mouse.js", signedIn, script},
	{"OWA, style sheet", "GET /owa/prem/15.2.1748.10/resources/themes/base/images/0/sprite1.mouse.css", signedIn, "text/css"},
	{"OWA, message in a window of its own", "GET /owa/projection.aspx?ID=AAMkADk3OTg&ispopout=1", signedIn, htmlPage},
	{"OWA, page of an error", "GET /owa/auth/errorFE.aspx?httpCode=500&msg=1&owaError=x&be=mbx01", browser, htmlPage},
	{"OWA, change of an expired password", "GET /owa/auth/expiredpassword.aspx?url=/owa/auth.owa", browser, htmlPage},
	{"OWA, language at the first sign-in", "POST /owa/lang.owa", with(form, "Cookie", "cadata=Vt0mfZk1+bq=="), "302"},
	{"OWA, sign of life", "GET /owa/keepalive.owa", signedIn, ""},
	{"OWA, upload", "POST /owa/attachment.ashx?UA=0&cn=CreateAttachmentFromForm&X-OWA-CANARY=q3Xw_1JkTUe8p.", with(signedIn, "Content-Type",
		"multipart/form-data; boundary=x"), jsonText},
	{"OWA, sign-out", "GET /owa/logoff.owa", signedIn, "302"},
	{"published calendar", "GET /owa/calendar/6f2c0b3d@corp.example/3d9c1e7a/calendar.ics",
		map[string]string{"User-Agent": "Microsoft Office/16.0"}, "text/calendar"},

	{"sign-in to the admin centre", "GET /ecp/", browser, "302"},
	{"admin centre", "GET /ecp/?ExchClientVer=15", admin, htmlPage},
	{"admin centre, mailboxes", "POST /ecp/DDI/DDIService.svc/GetList?schema=MailboxService&msExchEcpCanary=Bx81KkTU_e8p.", with(admin,
		"Content-Type", jsonText), jsonText},
	{"admin centre, a change", "POST /ecp/DDI/DDIService.svc/SetObject?schema=EditMailbox&msExchEcpCanary=Bx81KkTU_e8p.", with(admin,
		"Content-Type", jsonText), jsonText},
	{"admin centre, script", "GET /ecp/15.2.1748.10/scripts/js.axd?resources=Common&v=15.2.1748.10", admin, script},
	{"options of a user", "GET /ecp/?rfr=owa&p=PersonalSettings/Password.aspx", admin, htmlPage},

	{"EWS", "POST /EWS/Exchange.asmx", ewsClient, xmlText},
	{"EWS, first without credentials", "POST /ews/exchange.asmx", map[string]string{"User-Agent": "ExchangeServicesClient/15.01.2248.002",
		"Content-Type": xmlText}, "401"},
	{"EWS, description", "GET /EWS/Services.wsdl", ewsClient, xmlText},
	{"EWS, picture of a person", "GET /EWS/Exchange.asmx/s/GetUserPhoto?email=max@corp.example&size=HR64x64", ewsClient, "image/jpeg"},
	{"EWS of another organisation", "POST /EWS/Exchange.asmx/WSSecurity", with(ewsClient, "Authorization", "Bearer eyJ0"), xmlText},
	{"move of a mailbox", "POST /EWS/mrsproxy.svc", map[string]string{"Content-Type": "application/soap+msbin1",
		"Authorization": "Negotiate YIIF"}, "application/soap+msbin1"},
	{"REST interface", "GET /api/v2.0/me/messages?$top=10&$select=Subject", map[string]string{"User-Agent": "Room/3.1",
		"Authorization": "Bearer eyJ0"}, jsonText},

	{"Autodiscover of Outlook", "POST /autodiscover/autodiscover.xml", with(outlook, "Content-Type", "text/xml"), xmlText},
	{"Autodiscover of Outlook, other case", "POST /Autodiscover/Autodiscover.xml", with(outlook, "Content-Type", "text/xml"), "401"},
	{"Autodiscover of a phone", "POST /autodiscover/autodiscover.xml", with(phone, "Content-Type", "text/xml"), xmlText},
	{"Autodiscover, SOAP", "POST /autodiscover/autodiscover.svc", ewsClient, xmlText},
	{"Autodiscover of another organisation", "POST /autodiscover/autodiscover.svc/WSSecurity", with(ewsClient, "Authorization",
		"Bearer eyJ0"), xmlText},
	{"Autodiscover v2", "GET /autodiscover/autodiscover.json?Email=erika%40corp.example&Protocol=Autodiscoverv1&RedirectCount=1", outlook,
		jsonText},
	{"Autodiscover v2, address as it is", "GET /autodiscover/autodiscover.json?Email=erika@corp.example&Protocol=ActiveSync&RedirectCount=1",
		phone, jsonText},
	{"Autodiscover v2, address in the path",
		"GET /autodiscover/autodiscover.json/v1.0/erika%40corp.example?Protocol=EWS&ServerLocation=true", ewsClient, jsonText},
	{"Autodiscover v2 for REST", "GET /autodiscover/autodiscover.json/v1.0/erika@corp.example?Protocol=REST", outlook, jsonText},

	{"ActiveSync, options", "OPTIONS /Microsoft-Server-ActiveSync", phone, ""},
	{"ActiveSync, synchronise", "POST /Microsoft-Server-ActiveSync?Cmd=Sync&User=corp%5Cerika&DeviceId=7HB2K0Q3R55T91VD&DeviceType=iPhone",
		phone, wbxml},
	{"ActiveSync, address as user",
		"POST /Microsoft-Server-ActiveSync?User=erika@corp.example&DeviceId=androidc1722&DeviceType=Android&Cmd=Ping", android, wbxml},
	{"ActiveSync, query in base64", "POST /Microsoft-Server-ActiveSync?jQkACQEQBIqzBw1mYW5keV9kZXZpY2UAAAAAB2lQaG9uZQ==", phone, wbxml},
	{"ActiveSync, send", "POST /Microsoft-Server-ActiveSync/default.eas?Cmd=SendMail&User=erika&DeviceId=7HB2K0Q3&DeviceType=iPad", phone, ""},

	{"Outlook, mailbox", "POST /mapi/emsmdb/?MailboxId=8c1fd0f2-3d2b-4f3e-9a70-2d1f6c7b8a90@corp.example", mapi, "application/mapi-http"},
	{"Outlook, own mailbox", "POST /mapi/emsmdb/?useMailboxOfAuthenticatedUser=true", with(mapi, "X-RequestType", "Connect"), "401"},
	{"Outlook, address book", "POST /mapi/nspi/?MailboxId=8c1fd0f2-3d2b-4f3e-9a70-2d1f6c7b8a90@corp.example", with(mapi, "X-RequestType",
		"QueryRows"), "application/mapi-http"},
	{"Outlook, RPC over HTTP, in", "RPC_IN_DATA /rpc/rpcproxy.dll?8c1fd0f2-3d2b-4f3e-9a70-2d1f6c7b8a90@corp.example:6001",
		map[string]string{"User-Agent": "MSRPC", "Accept": "application/rpc", "Authorization": "NTLM TlRM"}, "application/rpc"},
	{"Outlook, RPC over HTTP, out", "RPC_OUT_DATA /rpc/rpcproxy.dll?mbx01.corp.example:6004", map[string]string{"User-Agent": "MSRPC",
		"Accept": "application/rpc"}, "401"},
	{"offline address book", "GET /OAB/2f6b1c84-9e3d-4a57-8f10-6c2b7e9d4a35/oab.xml", map[string]string{"User-Agent": "Microsoft BITS/7.8",
		"Authorization": "Negotiate YIIF"}, "application/xml"},
	{"offline address book, data", "GET /oab/2f6b1c84-9e3d-4a57-8f10-6c2b7e9d4a35/6a0f-data-117.lzx",
		map[string]string{"User-Agent": "Microsoft BITS/7.8", "Range": "bytes=0-65535"}, "application/octet-stream"},

	{"Exchange Management Shell",
		"POST /powershell?serializationLevel=Full;ExchClientVer=15.2.1748.10;clientApplication=ManagementShell;PSVersion=5.1.20348.2849", remote, "application/soap+xml;charset=UTF-8"},
	{"remote PowerShell", "POST /PowerShell/?PSVersion=5.1.19041.4894", remote, "application/soap+xml;charset=UTF-8"},

	{"health check of a load balancer, OWA", "GET /owa/healthcheck.htm", nil, htmlPage},
	{"health check of a load balancer, EWS", "GET /EWS/healthcheck.htm", nil, htmlPage},
	{"health check, ECP", "GET /ecp/healthcheck.htm", monitor, htmlPage},
	{"health check, Autodiscover", "GET /Autodiscover/healthcheck.htm", monitor, htmlPage},
	{"health check, ActiveSync", "HEAD /Microsoft-Server-ActiveSync/healthcheck.htm", monitor, htmlPage},
	{"health check, MAPI", "GET /mapi/healthcheck.htm", monitor, htmlPage},
	{"health check, OAB", "GET /OAB/healthcheck.htm", monitor, htmlPage},
	{"health check, RPC", "GET /rpc/healthcheck.htm", monitor, htmlPage},
	{"health check, PowerShell", "GET /PowerShell/healthcheck.htm", monitor, htmlPage},
}
