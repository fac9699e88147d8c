// Package access is who may call what: the table of methods, the gate that every call passes, and who the caller is. It owns
// no keys and no records; whom to believe, it learns from the authenticators it is given.
package access

import (
	"time"

	"github.com/stopgap-em/stopgap/controller/internal/limit"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

// noLimit spells out that a method has none.
var noLimit = limit.Rate{}

// maxLimiters bounds the rates remembered: four methods of 50,000 agents.
const maxLimiters = 200_000

// rule is what a method declares about itself.
type rule struct {
	callers []trust.Kind
	// expired: a certificate within its grace may call it.
	expired bool
	rate    limit.Rate
	// maxRequest bounds one message of a request, in bytes; at most transport.MaxToController.
	maxRequest int
	// audited: the method writes the audit log itself, on success and on refusals of substance.
	audited bool
}

const (
	small = 8 << 10
	large = transport.MaxToController
)

var (
	readers = []trust.Kind{trust.KindViewer, trust.KindOperator, trust.KindAdmin}
	actors  = []trust.Kind{trust.KindOperator, trust.KindAdmin}
	admins  = []trust.Kind{trust.KindAdmin}
	agents  = []trust.Kind{trust.KindAgent}
	// A console and scripts poll with one person's certificate.
	peopleMay = limit.Rate{Every: 5 * time.Millisecond, Burst: 1000}
)

// methods says of each RPC who may call it, how often, how large a request may be, and whether it is audited. A method without
// an entry is refused, and fails a test.
var methods = map[string]rule{
	// What a stream may carry is bounded in package session (frames, batches); here is how often it may begin.
	stopgapv1.AgentService_Connect_FullMethodName: {callers: agents, maxRequest: large,
		rate: limit.Rate{Every: 500 * time.Millisecond, Burst: 60}},
	stopgapv1.AgentService_Pull_FullMethodName: {callers: agents, maxRequest: large,
		rate: limit.Rate{Every: time.Second, Burst: 60}},
	stopgapv1.AgentService_RenewCertificate_FullMethodName: {callers: agents, expired: true, maxRequest: small, audited: true,
		rate: limit.Rate{Every: time.Minute, Burst: 5}},
	// Nobody is one caller. Without a good token nothing is computed for it (Registry.Enroll).
	stopgapv1.EnrollmentService_Enroll_FullMethodName: {callers: []trust.Kind{KindNobody}, maxRequest: small, audited: true,
		rate: limit.Rate{Every: 5 * time.Millisecond, Burst: 2000}},

	stopgapv1.FleetService_ListMitigations_FullMethodName:    {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListAgents_FullMethodName:         {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_GetAgent_FullMethodName:           {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListOutcomes_FullMethodName:       {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_Watch_FullMethodName:              {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_PlanRollout_FullMethodName:        {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListRollouts_FullMethodName:       {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_GetRollout_FullMethodName:         {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListRolloutMembers_FullMethodName: {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListStrategies_FullMethodName:     {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_GetStrategy_FullMethodName:        {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListSwitches_FullMethodName:       {callers: readers, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_ListAudit_FullMethodName:          {callers: readers, rate: peopleMay, maxRequest: small},

	stopgapv1.FleetService_Recheck_FullMethodName:            {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_Publish_FullMethodName:            {callers: actors, rate: peopleMay, maxRequest: large, audited: true},
	stopgapv1.FleetService_ReleaseMitigation_FullMethodName:  {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_HoldMitigation_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevertMitigation_FullMethodName:   {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_CreateRollout_FullMethodName:      {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_StartRollout_FullMethodName:       {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_PauseRollout_FullMethodName:       {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ResumeRollout_FullMethodName:      {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ApproveRollout_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_HaltRollout_FullMethodName:        {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevertRollout_FullMethodName:      {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_FinishRollout_FullMethodName:      {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_CreateStrategy_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: large, audited: true},
	stopgapv1.FleetService_UpdateStrategy_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: large, audited: true},
	stopgapv1.FleetService_DeleteStrategy_FullMethodName:     {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_SetDefaultStrategy_FullMethodName: {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_PauseFleet_FullMethodName:         {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ResumeFleet_FullMethodName:        {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_WithholdMitigation_FullMethodName: {callers: actors, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_AllowMitigation_FullMethodName:    {callers: actors, rate: peopleMay, maxRequest: small, audited: true},

	stopgapv1.FleetService_ListTokens_FullMethodName:    {callers: admins, rate: peopleMay, maxRequest: small},
	stopgapv1.FleetService_CreateToken_FullMethodName:   {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevokeToken_FullMethodName:   {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_RevokeAgent_FullMethodName:   {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
	stopgapv1.FleetService_ReenrollAgent_FullMethodName: {callers: admins, rate: peopleMay, maxRequest: small, audited: true},
}
