package lab

import (
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
	dirs     map[string]string // file -> physical directory
	model    *iisconfig.Model
	srvErr   error
	restarts map[string]int
	until    map[string]time.Time // application restarting until
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

func (s *Server) fileStamp(p string) string {
	st, err := os.Stat(p)
	if err != nil {
		return "-"
	}
	return fmt.Sprint(st.Size(), st.ModTime().UnixNano())
}

// recorder notes each file that the model looks for, so that a change of it, or its appearance, is seen.
type recorder struct {
	labdir.Dir
	s *Server
}

// ConfigFile implements iisconfig.Files.
func (r recorder) ConfigFile(dir, file string) ([]byte, string, error) {
	data, name, err := r.Dir.ConfigFile(dir, file)
	if name != "" {
		r.s.stamp[name], r.s.dirs[name] = r.s.fileStamp(name), dir
	}
	return data, name, err
}

// refresh reads the configuration again if a file of it changed.
func (s *Server) refresh() {
	changed := s.model == nil && s.srvErr == nil
	for p, old := range s.stamp {
		if s.fileStamp(p) == old {
			continue
		}
		changed = true
		s.restart(s.dirs[p])
	}
	if !changed {
		return
	}
	s.stamp, s.dirs, s.model = map[string]string{}, map[string]string{}, nil
	p, err := s.dir.Path(labdir.ApplicationHost)
	if err != nil {
		s.srvErr = err
		return
	}
	s.stamp[p] = s.fileStamp(p)
	data, name, err := s.dir.ReadFile(labdir.ApplicationHost)
	var srv *iisconfig.Server
	if err == nil {
		srv, err = iisconfig.Parse(data, name)
	}
	if s.srvErr = err; err != nil {
		return
	}
	s.model = iisconfig.NewModel(srv, recorder{s.dir, s})
	for _, site := range srv.FrontEndSites() { // so that every application's file is watched
		for _, path := range site.Places() {
			_ = s.model.At(site, path).Invalid()
		}
	}
}

// restart restarts every application that reads the files of a directory.
func (s *Server) restart(dir string) {
	if s.model == nil || dir == "" {
		return
	}
	for _, r := range s.model.Readers(dir) {
		if r.Place.App.Path != r.Place.Path { // a virtual directory restarts nothing
			continue
		}
		k := strings.ToLower(r.Place.Path)
		s.restarts[k]++
		s.until[k] = time.Now().Add(restartTime)
	}
}

// composed is what the front end does with the requests to one path.
type composed struct {
	app  *iisconfig.App
	rs   *urlrewrite.Ruleset // nil: the rewrite module does not run there
	err  error
	busy time.Duration
}

// compose reads the configuration of a path as IIS composes it.
func (s *Server) compose(path string) (c composed, srvErr error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	if s.srvErr != nil {
		return c, s.srvErr
	}
	sites := s.model.Server().FrontEndSites()
	if len(sites) == 0 || sites[0].AppFor(path) == nil {
		return c, nil
	}
	p := s.model.At(sites[0], path)
	c.app, c.busy = p.App, time.Until(s.until[strings.ToLower(p.App.Path)])
	if c.rs, _, c.err = p.Rules(); c.err == nil {
		if runs, _ := p.Module(); !runs {
			c.rs = nil
		}
	}
	return c, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, srvErr := s.compose(r.URL.Path)
	switch {
	case srvErr != nil:
		fail(w, http.StatusServiceUnavailable, "IIS can't read its configuration: "+srvErr.Error())
		return
	case c.app == nil:
		fail(w, http.StatusNotFound, "no site")
		return
	case strings.HasPrefix(r.URL.Path, "/_lab/um"):
		s.unifiedMessaging(w)
		return
	}
	if c.busy > 0 {
		time.Sleep(c.busy)
	}
	if c.err != nil {
		w.Header().Set("X-Lab-Substatus", "500.19")
		fail(w, http.StatusInternalServerError, "HTTP Error 500.19 - "+configError(c.err))
		return
	}
	s.handle(w, r, c.app, c.rs)
}

func configError(err error) string {
	if bad := iisconfig.AsInvalid(err); bad != nil {
		return err.Error()
	}
	return "the configuration can't be read: " + err.Error()
}

func (s *Server) handle(w http.ResponseWriter, r *http.Request, app *iisconfig.App, rs *urlrewrite.Ruleset) {
	req := &urlrewrite.Request{Method: r.Method, Scheme: "https", Host: r.Host, Path: r.URL.Path, RawQuery: r.URL.RawQuery,
		Header: r.Header, RemoteAddr: r.RemoteAddr, OwnBase: true}
	var res urlrewrite.Result
	var err error
	if rs != nil {
		res, err = rs.Inbound(req, app.Path)
	}
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
	if rs != nil {
		out := &urlrewrite.Response{Status: resp.status, Header: resp.header, Body: resp.body}
		if _, _, err := rs.Respond(req, out); err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
		resp.body = out.Body
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
