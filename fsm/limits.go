package fsm

// Limits that the state machine holds by itself, whatever the doors in front of it let through. They are part of the
// meaning of the log: changing one needs a new feature level, else an old log replays to another state.
const (
	// FeatureLevel is the highest Command.level that this state machine applies.
	FeatureLevel = 4
	// AccessLevel is the level of commands that have an actor and of those that change who may do what.
	AccessLevel = 2
	// HistoryLevel is the level of commands about namespaces. From the first command of this level on a history of the
	// instances is kept, whatever the level of those that follow.
	HistoryLevel = 3
	// KVLevel is the level of commands about keys, and of what sessions, quotas and policies say about them.
	KVLevel = 4
	// MaxNameBytes bounds every identifier: namespaces, services, ids, sessions, leases, locks, checks, members.
	MaxNameBytes = 256
	// MaxClientIDBytes bounds the client id of a request.
	MaxClientIDBytes = 64
	// MaxSpecBytes bounds the encoded specification of an instance.
	MaxSpecBytes = 64 << 10
	// MaxChecks bounds the checks of an instance.
	MaxChecks = 64
	// MaxOutputBytes bounds the output of a check; longer output is cut at a character.
	MaxOutputBytes = 256
	// MaxBatch bounds the registrations and deregistrations of a batch together.
	MaxBatch = 1000
	// MaxLockWaiters bounds the queue of one lock.
	MaxLockWaiters = 1000
	// MaxLockSlots bounds the owners of one lock.
	MaxLockSlots = 1000
	// MaxLockValueBytes bounds the value of a lock's owner.
	MaxLockValueBytes = 1 << 10
	// MaxMemberBytes bounds each field of a member.
	MaxMemberBytes = 1 << 10
	// MaxDescriptionBytes bounds the description of a policy or a token.
	MaxDescriptionBytes = 256
	// MaxNamespaces bounds the namespaces about which something was said.
	MaxNamespaces = 1000
	// HistoryChunks bounds the chunks of 16 KiB that the history of instances takes: 8 MiB in all, some 90,000 changes.
	HistoryChunks = 512
	// MaxKeyBytes bounds a key.
	MaxKeyBytes = 512
	// MaxValueBytes bounds the value of a key.
	MaxValueBytes = 512 << 10
	// MaxKVOps bounds the operations of a transaction.
	MaxKVOps = 64
	// MaxKVTransactionBytes bounds the keys and values of a transaction together.
	MaxKVTransactionBytes = 1 << 20
	// MaxKeys bounds the keys of all namespaces.
	MaxKeys = 1_000_000
	// MaxKVBytes bounds the keys and values of all namespaces together.
	MaxKVBytes = 256 << 20
	// MaxDeletedKeys bounds the keys that one operation deletes, so that no entry does unbounded work.
	MaxDeletedKeys = 100_000
	// MaxOwnedKeys bounds the keys that sessions own, and those with a lock delay, together.
	MaxOwnedKeys = 100_000
	// MaxLockDelayMs bounds the lock delay of a session, in milliseconds.
	MaxLockDelayMs = 60_000
	// MaxSwept bounds the lock delays that are over and that one entry forgets.
	MaxSwept = 1024
	// MaxEmptyKVNamespaces bounds the namespaces without keys of which it is known when the last one was deleted.
	MaxEmptyKVNamespaces = 1000
	// MaxPolicies bounds the policies, those that are built in not counted.
	MaxPolicies = 1000
	// MaxRules bounds the rules of a policy.
	MaxRules = 64
	// MaxActions bounds the actions of a rule.
	MaxActions = 9
	// MaxTokens bounds the tokens. Bootstrapping adds one all the same.
	MaxTokens = 10_000
	// MaxGrants bounds the grants.
	MaxGrants = 10_000
	// MaxGrantPolicies bounds the policies of a grant.
	MaxGrantPolicies = 16
	// MaxOutcomes is the number of outcomes remembered for one client.
	MaxOutcomes = 64
	// MaxClients is the number of clients whose outcomes are remembered.
	MaxClients = 100_000
	// ClientIdleMs is the log time, in milliseconds, after which the outcomes of a silent client are forgotten. Leaps of
	// the log time don't count.
	ClientIdleMs = 10 * 60 * 1000
	// MaxStepMs is how far, in milliseconds, one entry moves the time that counts for ClientIdleMs. What the log time
	// moves beyond it is a leap: nobody wrote for a while, or a clock was set forward, and that must not make the state
	// forget what a retry under way relies on.
	MaxStepMs = 10_000
	// ClientTouchMs is the grain, in milliseconds, of a client's last use: a busy client moves in the order of last use
	// once a grain, not once a request.
	ClientTouchMs = 1000
	// MaxForgotten bounds the idle clients that one entry forgets, so that no entry does unbounded work.
	MaxForgotten = 128
)
