package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"

	"github.com/stopgap-em/stopgap/controller/internal/rollout/engine"
	"github.com/stopgap-em/stopgap/controller/internal/store"
)

func (r *Rollout) strategy(name string) (engine.Strategy, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if name == "" {
		name = r.byDefault
	}
	s, ok := r.strategies[name]
	if !ok {
		return s, fmt.Errorf("%w: %q", ErrNoStrategy, name)
	}
	return s, nil
}

// Strategies gives every strategy by name, and the name of the one for what is published.
func (r *Rollout) Strategies() ([]engine.Strategy, string) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]engine.Strategy, 0, len(r.strategies))
	for _, s := range r.strategies {
		out = append(out, s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, r.byDefault
}

func builtIn(name string) bool {
	for _, s := range engine.BuiltIn() {
		if s.Name == name {
			return true
		}
	}
	return false
}

// Strategy gives one by name. Errors: ErrNoStrategy.
func (r *Rollout) Strategy(name string) (engine.Strategy, error) {
	if name == "" {
		return engine.Strategy{}, fmt.Errorf("%w: %q", ErrNoStrategy, name)
	}
	return r.strategy(name)
}

// CreateStrategy stores a strategy with a new name. Errors: ErrBuiltIn, ErrStrategyExists.
func (r *Rollout) CreateStrategy(ctx context.Context, s engine.Strategy) error {
	r.step.Lock()
	defer r.step.Unlock()
	if _, err := r.Strategy(s.Name); err == nil && !builtIn(s.Name) {
		return fmt.Errorf("%w: %s", ErrStrategyExists, s.Name)
	}
	return r.putStrategy(ctx, s)
}

// UpdateStrategy replaces the strategy of the same name; with missing, there need not be one. Errors: ErrBuiltIn, ErrNoStrategy.
func (r *Rollout) UpdateStrategy(ctx context.Context, s engine.Strategy, missing bool) error {
	r.step.Lock()
	defer r.step.Unlock()
	if _, err := r.Strategy(s.Name); err != nil && !missing {
		return err
	}
	return r.putStrategy(ctx, s)
}

// putStrategy stores a strategy. The caller holds step.
func (r *Rollout) putStrategy(ctx context.Context, s engine.Strategy) error {
	if builtIn(s.Name) {
		return fmt.Errorf("%w: %s", ErrBuiltIn, s.Name)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: kStrategy + s.Name, Value: raw}}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strategies[s.Name] = s
	return nil
}

// DeleteStrategy deletes one that is not the fleet's. Errors: ErrNoStrategy, ErrBuiltIn.
func (r *Rollout) DeleteStrategy(ctx context.Context, name string) error {
	_, byDefault := r.Strategies()
	if _, err := r.strategy(name); err != nil || name == "" {
		return errors.Join(err, fmt.Errorf("%w: %q", ErrNoStrategy, name))
	}
	if builtIn(name) || name == byDefault {
		return fmt.Errorf("%w: %s", ErrBuiltIn, name)
	}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: kStrategy + name, Delete: true}}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.strategies, name)
	return nil
}

// MakeDefault makes a strategy the one for what is published. Errors: ErrNoStrategy.
func (r *Rollout) MakeDefault(ctx context.Context, name string) error {
	if _, err := r.Strategy(name); err != nil {
		return err
	}
	if _, err := r.cfg.Store.Txn(ctx, nil, []store.Op{{Key: kDefault, Value: []byte(name)}}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byDefault = name
	return nil
}
