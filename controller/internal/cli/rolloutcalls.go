package cli

import (
	"context"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// rolloutCall is one call that does something with a rollout.
type rolloutCall func(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error)

// rolloutAnswer is what every such call answers.
type rolloutAnswer interface {
	GetRollout() *stopgapv1.Rollout
}

func startRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.StartRollout(ctx, &stopgapv1.StartRolloutRequest{RolloutId: id, Reason: reason})
}

func pauseRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.PauseRollout(ctx, &stopgapv1.PauseRolloutRequest{RolloutId: id, Reason: reason})
}

func resumeRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.ResumeRollout(ctx, &stopgapv1.ResumeRolloutRequest{RolloutId: id, Reason: reason})
}

func approveRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.ApproveRollout(ctx, &stopgapv1.ApproveRolloutRequest{RolloutId: id, Reason: reason})
}

func haltRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.HaltRollout(ctx, &stopgapv1.HaltRolloutRequest{RolloutId: id, Reason: reason})
}

func revertRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.RevertRollout(ctx, &stopgapv1.RevertRolloutRequest{RolloutId: id, Reason: reason})
}

func finishRollout(ctx context.Context, c stopgapv1.FleetServiceClient, id, reason string) (rolloutAnswer, error) {
	return c.FinishRollout(ctx, &stopgapv1.FinishRolloutRequest{RolloutId: id, Reason: reason})
}
