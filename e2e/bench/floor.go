package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/stopgap-em/stopgap/shared/trust"
)

// The floor: payload bytes to every connection of a plain TLS server, and answerBytes back; nothing framed, decoded or
// recorded.
const (
	payloadBytes = 4096
	answerBytes  = 50
)

func floorChild(ctx context.Context, dir string, agents int) error {
	server := filepath.Join(dir, "controller", "server")
	cert, err := tls.LoadX509KeyPair(filepath.Join(server, trust.CertFile), filepath.Join(server, trust.KeyFile))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(server, trust.CAFile))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("no CA certificate")
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", trust.ServerTLS(cert, pool, func(c *x509.Certificate) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}))
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		<-ctx.Done()
		_ = ln.Close()
	}()
	var mu sync.Mutex
	var conns []*tls.Conn
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				tc := c.(*tls.Conn)
				if tc.HandshakeContext(ctx) == nil {
					mu.Lock()
					conns = append(conns, tc)
					mu.Unlock()
				}
			}()
		}
	}()
	payload := make([]byte, payloadBytes)
	return answer(map[string]func() stats{"push": func() stats {
		mu.Lock()
		all := conns
		mu.Unlock()
		if len(all) != agents {
			return stats{Error: fmt.Sprintf("%d connections, want %d", len(all), agents)}
		}
		began := time.Now()
		var wg sync.WaitGroup
		var failed error
		for _, c := range all {
			wg.Go(func() {
				var buf [answerBytes]byte
				_, err := c.Write(payload)
				if err == nil {
					_, err = io.ReadFull(c, buf[:])
				}
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if failed != nil {
			return stats{Error: failed.Error()}
		}
		return stats{LastMS: ms(time.Since(began))}
	}})
}

// floor measures the floor with the same certificates.
func floor(ctx context.Context, dir string, creds []*trust.Credentials, rounds int) ([]float64, error) {
	child, err := startChild(modeFloor, dir, len(creds))
	if err != nil {
		return nil, err
	}
	defer child.stop()
	conns := make([]net.Conn, len(creds))
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	err = parallel(ctx, len(creds), func(i int) error {
		d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: localAddr(i)}, Config: trust.ClientTLS(creds[i], "127.0.0.1")}
		c, err := d.DialContext(ctx, "tcp", child.addr)
		if err != nil {
			return err
		}
		conns[i] = c
		go func() {
			buf := make([]byte, payloadBytes)
			reply := make([]byte, answerBytes)
			for {
				if _, err := io.ReadFull(c, buf); err != nil {
					return
				}
				if _, err := c.Write(reply); err != nil {
					return
				}
			}
		}()
		return nil
	})
	if err != nil {
		return nil, err
	}
	time.Sleep(settleTime)
	var out []float64
	for range rounds {
		s, err := child.ask("push")
		if err != nil {
			return nil, err
		}
		out = append(out, s.LastMS)
		time.Sleep(pause)
	}
	return out, nil
}
