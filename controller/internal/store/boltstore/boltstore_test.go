package boltstore

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/controller/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, path string) store.Store {
		t.Helper()
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	storetest.Run(t,
		func(t *testing.T) store.Store { return open(t, filepath.Join(t.TempDir(), "store.db")) },
		func(t *testing.T, s store.Store) store.Store {
			path := s.(*Store).db.Path()
			_ = s.Close()
			return open(t, path)
		})
}
