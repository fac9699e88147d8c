package boltstore

import (
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/stopgap-em/stopgap/controller/internal/store"
	"github.com/stopgap-em/stopgap/controller/internal/store/storetest"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
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

func TestOneDamagedOutcomeHidesNoOther(t *testing.T) {
	t.Parallel()
	s, err := Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	o := s.Outcomes()
	good := &stopgapv1.SequencedOutcome{Sequence: 1, Outcome: &stopgapv1.Outcome{Mitigation: "M1",
		State: stopgapv1.OutcomeState_OUTCOME_STATE_APPLIED}}
	for _, agent := range []string{"a", "b"} {
		if _, err := o.CommitBatch(t.Context(), []store.Batch{{Agent: agent, Epoch: "e",
			Outcomes: []*stopgapv1.SequencedOutcome{good}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bCurrent).Put([]byte("M1\x00a"), []byte("\xff")) }); err != nil {
		t.Fatal(err)
	}
	var got []*stopgapv1.OutcomeRecord
	if _, err := o.Scan(t.Context(), store.Position{}, func(r *stopgapv1.OutcomeRecord) bool {
		got = append(got, r)
		return true
	}); err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if r := got[0]; r.GetAgentId() != "a" || r.GetOutcome().GetMitigation() != "M1" || r.GetOutcome().GetState() != 0 ||
		r.GetOutcome().GetReason() == "" {
		t.Errorf("the damaged one is given as %v", r)
	}
	if of, err := o.OfAgent(t.Context(), "a"); err != nil || len(of) != 1 || of[0].GetOutcome().GetReason() == "" {
		t.Errorf("of the agent: %v, %v", of, err)
	}
}
