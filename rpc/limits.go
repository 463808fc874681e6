package rpc

import "time"

// Limits of a request. They are part of the API: the comments in proto/ name them, and errors repeat them.
const (
	// MaxNamespaceLen is the longest namespace, in characters.
	MaxNamespaceLen = 63
	// MaxServiceLen is the longest service name, in characters.
	MaxServiceLen = 128
	// MaxInstanceIDLen is the longest instance id, in characters.
	MaxInstanceIDLen = 128
	// MaxAddressLen is the longest address of an instance, in bytes.
	MaxAddressLen = 255
	// MaxPorts is the number of ports of an instance.
	MaxPorts = 16
	// MaxPortNameLen is the longest name of a port, in characters.
	MaxPortNameLen = 32
	// MaxPort is the largest port number.
	MaxPort = 65535
	// MaxTags is the number of tags of an instance.
	MaxTags = 64
	// MaxTagLen is the longest tag, in bytes.
	MaxTagLen = 128
	// MaxMetadata is the number of metadata pairs of an instance.
	MaxMetadata = 64
	// MaxMetadataKeyLen is the longest metadata key, in bytes.
	MaxMetadataKeyLen = 128
	// MaxMetadataValueLen is the longest metadata value, in bytes.
	MaxMetadataValueLen = 512
	// MaxMetadataBytes is the size of all metadata keys and values of an instance together.
	MaxMetadataBytes = 4 << 10
	// MaxZoneLen is the longest zone and the longest region, in bytes.
	MaxZoneLen = 64
	// MaxWeight is the largest weight.
	MaxWeight = 65535
	// DefaultWeight is the weight of an instance that names none.
	DefaultWeight = 100
	// MinDeregisterCriticalAfter is the shortest deregister_critical_after.
	MinDeregisterCriticalAfter = 10 * time.Second
	// MaxInstanceBytes is the largest encoded specification of an instance.
	MaxInstanceBytes = 64 << 10

	// MaxChecks is the number of checks of an instance.
	MaxChecks = 16
	// MaxCheckNameLen is the longest name of a check, in characters.
	MaxCheckNameLen = 64
	// MinCheckInterval is the shortest time between probes.
	MinCheckInterval = time.Second
	// MaxCheckInterval is the longest time between probes.
	MaxCheckInterval = time.Hour
	// DefaultCheckInterval is the time between probes of a check that names none.
	DefaultCheckInterval = 10 * time.Second
	// MinCheckTimeout is the shortest time for one probe. The longest is the interval.
	MinCheckTimeout = 10 * time.Millisecond
	// DefaultCheckTimeout is the time for one probe of a check that names none, if its interval is not shorter.
	DefaultCheckTimeout = 5 * time.Second
	// MaxCheckCount is the largest rise and fall.
	MaxCheckCount = 10
	// DefaultRise is the rise of a check that names none.
	DefaultRise = 1
	// DefaultFall is the fall of a check that names none.
	DefaultFall = 3
	// MinCheckTTL is the shortest ttl of a TTL check.
	MinCheckTTL = time.Second
	// MaxCheckTTL is the longest ttl of a TTL check.
	MaxCheckTTL = 24 * time.Hour
	// MaxCheckURLLen is the longest URL, path, host:port or gRPC service name of a check, in bytes.
	MaxCheckURLLen = 1024
	// MaxCheckHeaders is the number of headers of an HTTP check.
	MaxCheckHeaders = 16
	// MaxCheckHeaderLen is the longest name and the longest value of a header of an HTTP check, in bytes.
	MaxCheckHeaderLen = 512
	// MaxCheckBodyLen is the longest text that an HTTP check may expect in a body, in bytes.
	MaxCheckBodyLen = 1024
	// MaxCheckOutputLen is the longest output of a check, in bytes.
	MaxCheckOutputLen = 256

	// MinTTL is the shortest time to live of a session or lease.
	MinTTL = 2 * time.Second
	// MaxTTL is the longest time to live of a session or lease.
	MaxTTL = 24 * time.Hour
	// DefaultSessionTTL is the time to live of a session that names none.
	DefaultSessionTTL = 15 * time.Second
	// MaxIDLen is the longest id of a session, a lease or a client, in characters.
	MaxIDLen = 64
	// MaxClientNameLen is the longest name by which a client calls itself, in bytes.
	MaxClientNameLen = 128
	// MaxRenewals is the number of ids that one renewal may carry.
	MaxRenewals = 10_000

	// MaxLockNameLen is the longest name of a lock, in characters.
	MaxLockNameLen = 256
	// MaxLockValueLen is the size of a lock's value, in bytes.
	MaxLockValueLen = 1 << 10
	// MaxLockSlots is the number of sessions that may own one lock.
	MaxLockSlots = 1000
	// MaxLockWait is how long one Acquire may wait. It is also the wait of a call without a deadline.
	MaxLockWait = time.Hour

	// streamWindow is how much a client may send on a stream ahead of what is read, and connWindow on a connection. gRPC
	// would measure each path for better ones, with a ping to and fro for every few requests.
	streamWindow = 64 << 10
	connWindow   = 1 << 20

	// MaxBatch is the number of registrations and deregistrations of one batch together.
	MaxBatch = 1000
	// MaxPageSize is the number of items on a page, and the default.
	MaxPageSize = 1000
	// MaxPageBytes is about the size of a page: it ends early with the item that reaches it, so that an answer stays
	// well within the 4 MiB that a gRPC client accepts by default.
	MaxPageBytes = 2 << 20
	// MaxPageTokenLen is the longest page token.
	MaxPageTokenLen = 2 << 10
	// MaxFilterTerms is the number of tags and the number of metadata pairs of a filter.
	MaxFilterTerms = 16
	// MinStaleness is the least max_staleness of a bounded read.
	MinStaleness = time.Millisecond
	// MaxStaleness is the largest max_staleness of a bounded read.
	MaxStaleness = time.Hour

	// MaxNodeNameLen is the longest name or id of a node, in bytes.
	MaxNodeNameLen = 64
	// SnapshotChunk is the most bytes of a snapshot in one message of SaveSnapshot.
	SnapshotChunk = 256 << 10
	// MaxSnapshotBytes is the largest snapshot that RestoreSnapshot takes.
	MaxSnapshotBytes = 1 << 30

	// maxViolations is the number of faults that one error names.
	maxViolations = 32
	// maxViolationBytes is the text of these faults together. An error travels in trailers, this text twice, and many
	// clients take no more than 8 KiB of those: they would show nothing of a longer one.
	maxViolationBytes = 1 << 10
	// maxQuoted is how much of a bad value an error repeats, in bytes.
	maxQuoted = 48
)

// Limits of the server.
const (
	// DefaultMaxReceive is the largest message from a client, in bytes.
	DefaultMaxReceive = 1 << 20
	// DefaultMaxStreams is the number of calls that one connection may have open.
	DefaultMaxStreams = 256
	// DefaultMaxConns is the number of connections in all.
	DefaultMaxConns = 4000
	// DefaultMaxConnsPerIP is the number of connections from one address.
	DefaultMaxConnsPerIP = 200
	// DefaultMaxInFlight is the number of calls that are worked on at once; see admission.
	DefaultMaxInFlight = 1024
	// DefaultMaxLockWaiters is the number of Acquire calls that wait at once.
	DefaultMaxLockWaiters = 10_000
	// DefaultMaxWatches is the number of watch streams that are open at once.
	DefaultMaxWatches = 20_000
	// DefaultTimeout is the deadline of a unary call that has none.
	DefaultTimeout = 10 * time.Second
	// MaxTimeout is the longest deadline of a unary call; only a waiting Acquire may take longer.
	MaxTimeout = time.Minute

	// maxHeaderBytes is the largest header list of a call.
	maxHeaderBytes = 16 << 10
	// connectionTimeout bounds the handshakes of a new connection.
	connectionTimeout = 5 * time.Second
	// keepaliveMinTime is how often a client may ping.
	keepaliveMinTime = 5 * time.Second
	// keepaliveTime is how long a connection may be silent before the server pings.
	keepaliveTime = 30 * time.Second
	// keepaliveTimeout is how long the answer to a ping may take.
	keepaliveTimeout = 10 * time.Second
	// healthInterval is how often a watch of the health service looks at the node.
	healthInterval = 500 * time.Millisecond

	// cleanupTimeout bounds what the server undoes after a call has ended.
	cleanupTimeout = 5 * time.Second
	// renewTimeout bounds one attempt to renew within a stream.
	renewTimeout = 5 * time.Second
	// renewPause is the pause after the first failed attempt to renew within a stream; it doubles up to maxRenewPause.
	renewPause = 50 * time.Millisecond
	// maxRenewPause is the longest such pause.
	maxRenewPause = time.Second
	// overloadRetry is when a refused client should come back.
	overloadRetry = 250 * time.Millisecond
	// maxDeliveries is the number of waits for delivery under way at one node, those that other nodes ask for among them.
	maxDeliveries = 2048
	// maxLaggards is the number of lagging streams that are named for one node.
	maxLaggards = 16
	// deliveryMargin is how long before its deadline a wait for delivery is given up, so that its answer still arrives.
	deliveryMargin = 100 * time.Millisecond
	// lockMargin is how long before the deadline a waiting Acquire gives up, so that its answer still arrives.
	lockMargin = 100 * time.Millisecond
)
