package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/stopgap-em/stopgap/shared/exchange"
	"github.com/stopgap-em/stopgap/shared/iisconfig"
	"github.com/stopgap-em/stopgap/shared/labdir"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/urlrewrite"
	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// Server is the HTTP front end of a lab server: site "Default Web Site". It reads the configuration again whenever a file
// changed, as IIS does, and answers 500.19 for what IIS would refuse.
type Server struct {
	dir   labdir.Dir
	http  *http.Server
	ln    net.Listener
	fixed *exchange.Table

	mu       sync.Mutex
	stamp    map[string]string // file -> size and mtime, of everything the current configuration was read from
	srv      *iisconfig.Server
	srvErr   error
	rules    map[string]ruleset // by application path
	restarts map[string]int
	until    map[string]time.Time // application restarting until
}

type ruleset struct {
	rs  *urlrewrite.Ruleset
	err error
}

// restartTime is how long an application is busy after its web.config changed.
const restartTime = 30 * time.Millisecond

// Serve starts the front end of a lab server on an address (":0" for any port).
func Serve(dir, addr string) (*Server, error) {
	d, err := labdir.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: d, restarts: map[string]int{}, until: map[string]time.Time{}, stamp: map[string]string{}}
	files, err := mitigation.Catalogue()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if f.Name == mitigation.FixedBuildsName {
			fb, err := mitigation.ParseFixedBuilds(f.Name, f.Content)
			if err != nil {
				return nil, err
			}
			s.fixed = fb.Table
		}
	}
	if s.ln, err = net.Listen("tcp", addr); err != nil {
		return nil, err
	}
	if err := d.SetFrontEnd(s.URL()); err != nil {
		_ = s.ln.Close()
		return nil, err
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
	go func() { _ = s.http.Serve(s.ln) }()
	return s, nil
}

// URL is the base address, without a trailing slash.
func (s *Server) URL() string { return "http://" + s.ln.Addr().String() }

// Close stops the front end.
func (s *Server) Close() error {
	err := s.http.Close()
	if at, ferr := s.dir.FrontEnd(); ferr == nil && at == s.URL() {
		err = errors.Join(err, s.dir.SetFrontEnd(""))
	}
	return err
}

// Restarts says how often an application was restarted because a file it reads changed.
func (s *Server) Restarts(app string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts[strings.ToLower(app)]
}

// HealthManager plays Managed Availability until ctx ends: its recovery service starts it when it is stopped, and it
// starts what it finds stopped and enabled.
func HealthManager(ctx context.Context, dir string, every time.Duration) {
	d := labdir.Dir(dir)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		services, err := d.Services()
		if err != nil {
			continue
		}
		up := func(n string) bool { return services[n].State == labdir.Running }
		if up("MSExchangeHMRecovery") && !up("MSExchangeHM") {
			_ = d.UpdateServices(func(m map[string]labdir.Service) error {
				hm := m["MSExchangeHM"]
				hm.StartType, hm.State = labdir.StartAutomatic, labdir.Running
				m["MSExchangeHM"] = hm
				return nil
			})
			continue
		}
		if !up("MSExchangeHM") {
			continue
		}
		_ = d.UpdateServices(func(m map[string]labdir.Service) error {
			for n, v := range m {
				if strings.HasPrefix(n, "MSExchange") && v.State == labdir.Stopped {
					v.StartType, v.State = labdir.StartAutomatic, labdir.Running
					m[n] = v
				}
			}
			return nil
		})
		_ = d.UpdatePools(func(m map[string]string) error {
			clear(m)
			return nil
		})
	}
}

func (s *Server) fileStamp(p string) string {
	st, err := os.Stat(p)
	if err != nil {
		return "-"
	}
	return fmt.Sprint(st.Size(), st.ModTime().UnixNano())
}

// refresh reads the configuration again if a file of it changed.
func (s *Server) refresh() {
	changed := s.srv == nil && s.srvErr == nil
	for p, old := range s.stamp {
		if s.fileStamp(p) == old {
			continue
		}
		changed = true
		s.restart(p)
	}
	if !changed {
		return
	}
	s.stamp, s.rules = map[string]string{}, map[string]ruleset{}
	p, err := s.dir.Path(labdir.ApplicationHost)
	if err != nil {
		s.srvErr = err
		return
	}
	s.stamp[p] = s.fileStamp(p)
	data, name, err := s.dir.ReadFile(labdir.ApplicationHost)
	if err == nil {
		s.srv, s.srvErr = iisconfig.Parse(data, name)
	} else {
		s.srvErr = err
	}
	if s.srvErr != nil {
		return
	}
	for _, site := range s.srv.FrontEndSites() {
		for _, a := range site.Apps {
			if wp, err := s.dir.Path(strings.TrimRight(a.Dir, `\`) + `\web.config`); err == nil {
				s.stamp[wp] = s.fileStamp(wp)
			}
			rs, err := s.srv.Effective(a, s.dir)
			s.rules[strings.ToLower(a.Path)] = ruleset{rs, err}
		}
	}
}

// restart restarts every application that reads a file.
func (s *Server) restart(path string) {
	if s.srv == nil {
		return
	}
	for _, site := range s.srv.FrontEndSites() {
		for _, a := range site.Apps {
			wp, err := s.dir.Path(strings.TrimRight(a.Dir, `\`) + `\web.config`)
			if err != nil || wp != path {
				continue
			}
			for _, r := range s.srv.Readers(a.Dir) {
				k := strings.ToLower(r.Path)
				s.restarts[k]++
				s.until[k] = time.Now().Add(restartTime)
			}
			return
		}
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.refresh()
	srv, srvErr := s.srv, s.srvErr
	var site *iisconfig.Site
	var app *iisconfig.App
	var rules ruleset
	var busy time.Duration
	if srvErr == nil {
		if sites := srv.FrontEndSites(); len(sites) > 0 {
			site = sites[0]
			app = site.AppFor(r.URL.Path)
		}
		if app != nil {
			rules = s.rules[strings.ToLower(app.Path)]
			busy = time.Until(s.until[strings.ToLower(app.Path)])
		}
	}
	s.mu.Unlock()
	switch {
	case srvErr != nil:
		fail(w, http.StatusServiceUnavailable, "IIS can't read its configuration: "+srvErr.Error())
		return
	case app == nil:
		fail(w, http.StatusNotFound, "no site")
		return
	case strings.HasPrefix(r.URL.Path, "/_lab/um"):
		s.unifiedMessaging(w)
		return
	}
	if busy > 0 {
		time.Sleep(busy)
	}
	if rules.err != nil {
		w.Header().Set("X-Lab-Substatus", "500.19")
		fail(w, http.StatusInternalServerError, "HTTP Error 500.19 - "+configError(rules.err))
		return
	}
	s.handle(w, r, app, rules.rs)
}

func configError(err error) string {
	var ce *urlrewrite.ConfigError
	var se *xmldoc.SyntaxError
	if errors.As(err, &ce) || errors.As(err, &se) {
		return err.Error()
	}
	return "the configuration can't be read: " + err.Error()
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request, app *iisconfig.App, rs *urlrewrite.Ruleset) {
	req := &urlrewrite.Request{Method: r.Method, Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery,
		Header: r.Header, RemoteAddr: r.RemoteAddr}
	res, err := rs.Inbound(req, app.Path)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	switch res.Action {
	case urlrewrite.ActionAbort:
		abort(w)
		return
	case urlrewrite.ActionCustomResponse:
		fail(w, res.Status, res.Reason)
		return
	case urlrewrite.ActionRedirect:
		w.Header().Set("Location", res.URL)
		w.WriteHeader(res.Status)
		return
	case urlrewrite.ActionRewrite:
		if u, err := url.ParseRequestURI(res.URL); err == nil {
			r.URL = u
		}
	case urlrewrite.ActionNone:
	}
	pools, err := s.dir.Pools()
	if err != nil || pools[app.Pool] == labdir.Stopped {
		fail(w, http.StatusServiceUnavailable, "HTTP Error 503. The service is unavailable: application pool "+app.Pool+" is stopped")
		return
	}
	resp := s.exchange(r)
	if _, err := rs.Outbound(req, resp.header); err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	for k, v := range resp.header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(resp.body))
	}
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n"))
}

// abort closes the connection without an answer.
func abort(w http.ResponseWriter) {
	if hj, ok := w.(http.Hijacker); ok {
		if conn, _, err := hj.Hijack(); err == nil {
			_ = conn.Close()
			return
		}
	}
	panic(http.ErrAbortHandler)
}
