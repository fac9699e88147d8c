package probe

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stopgap-em/stopgap/e2e/patience"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

func effectOf(e *stopgapv1.EffectProbe) *stopgapv1.Probe {
	return &stopgapv1.Probe{Kind: &stopgapv1.Probe_Effect{Effect: e}}
}

func healthOf(request, component string) *stopgapv1.Probe {
	return &stopgapv1.Probe{Kind: &stopgapv1.Probe_Health{Health: &stopgapv1.HealthProbe{Request: request, ExpectStatus: 200, Component: component}}}
}

func TestWhatComesBackIsJudgedAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	var starting atomic.Int32
	starting.Store(2)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.UserAgent() != "Stopgap-Probe" || r.Host != "mail.contoso.com":
			w.WriteHeader(http.StatusTeapot)
		case r.URL.Path == "/abort":
			panic(http.ErrAbortHandler)
		case r.RequestURI == "/exact?@x/%50owerShell" && r.Header.Get("Cookie") == "a=b":
			w.Header().Set("Content-Security-Policy", "default-src 'self'; script-src-attr 'none'")
		case r.URL.Path == "/sorry":
			_, _ = w.Write([]byte("200 OK: something went wrong"))
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case r.URL.Path == "/starting" && starting.Add(-1) >= 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		}
	}))
	t.Cleanup(srv.Close)
	pr := Prober{Find: func(context.Context) (FrontEnd, error) { return FrontEnd{srv.URL, "mail.contoso.com"}, nil },
		Inactive: func(c string) bool { return c == "OwaProxy" }, Within: patience.For(5 * time.Second), Pause: time.Millisecond}
	for _, c := range []struct {
		p           *stopgapv1.Probe
		ok, skipped bool
		got         string
	}{
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /abort", ExpectAborted: true}), true, false, "without an answer"},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /fine", ExpectAborted: true}), false, false, "answered 200"},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /abort"}), false, false, "without an answer"},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /exact?@x/%50owerShell", Headers: map[string]string{"Cookie": "a=b"},
			ExpectHeader: map[string]string{"content-security-policy": "script-src-attr 'none'"}}), true, false, "200"},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /fine", ExpectHeader: map[string]string{"X-A": "1"}}), false, false, `header X-A is ""`},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /moved", ExpectStatus: 302}), true, false, "302"},
		{healthOf("GET /fine", ""), true, false, "200"},
		{&stopgapv1.Probe{Kind: &stopgapv1.Probe_Health{Health: &stopgapv1.HealthProbe{Request: "GET /sorry", ExpectStatus: 200, ExpectBody: "lab.contoso.com"}}}, false, false, "without the text"},
		{effectOf(&stopgapv1.EffectProbe{Request: "GET /sorry", ExpectBody: "went wrong"}), true, false, "200"},
		{healthOf("GET /moved", ""), false, false, "302"},
		{healthOf("GET /starting", ""), true, false, "200"},
		{healthOf("GET /fine", "OwaProxy"), false, true, "maintenance"},
	} {
		pr := pr
		if !c.ok {
			pr.Within = 0
			pr.Within = time.Nanosecond
		}
		if r := pr.Until(t.Context(), c.p, true); r.OK != c.ok || r.Skipped != c.skipped || !strings.Contains(r.Got, c.got) {
			t.Errorf("%s: %+v, want ok %t skipped %t %q", r.Name, r, c.ok, c.skipped, c.got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if r := pr.Once(ctx, effectOf(&stopgapv1.EffectProbe{Request: "GET /slow", ExpectAborted: true})); r.OK {
		t.Errorf("no answer in time was taken for an abort: %+v", r)
	}
	pr.Find = func(context.Context) (FrontEnd, error) { return FrontEnd{URL: "https://127.0.0.1:1"}, nil }
	if r := pr.Once(t.Context(), effectOf(&stopgapv1.EffectProbe{Request: "GET /", ExpectAborted: true})); r.OK || r.Skipped {
		t.Errorf("nobody listens was taken for an abort: %+v", r)
	}
	// Something else listens: its words are no abort.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail\r\n"))
			_ = c.Close()
		}
	}()
	pr.Find = func(context.Context) (FrontEnd, error) { return FrontEnd{URL: "https://" + ln.Addr().String()}, nil }
	if r := pr.Once(t.Context(), effectOf(&stopgapv1.EffectProbe{Request: "GET /", ExpectAborted: true})); r.OK {
		t.Errorf("a failed handshake was taken for an abort: %+v", r)
	}
	pr.Find = func(context.Context) (FrontEnd, error) { return FrontEnd{}, nil }
	if r := pr.Once(t.Context(), healthOf("GET /", "")); !r.Skipped {
		t.Errorf("no front end: %+v", r)
	}
}
