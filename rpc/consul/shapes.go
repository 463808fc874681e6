package consul

// What Consul's API shows. Lists and maps are never null.

type node struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64
	ModifyIndex     uint64
}

type weights struct {
	Passing int
	Warning int
}

// address is one of a service's tagged addresses.
type address struct {
	Address string
	Port    int
}

type servicePort struct {
	Name    string
	Port    int
	Default bool
}

type locality struct {
	Region string
	Zone   string
}

// service is an instance of a service, at an agent or in an entry of health.
type service struct {
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Ports             []servicePort `json:",omitempty"` // only where there are several
	Address           string
	SocketPath        string             `json:",omitempty"`
	TaggedAddresses   map[string]address `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool
	CreateIndex       uint64
	ModifyIndex       uint64
	ContentHash       string    `json:",omitempty"`
	Datacenter        string    `json:",omitempty"`
	Locality          *locality `json:",omitempty"`
}

// definition is how a check is made.
type definition struct {
	HTTP                           string              `json:",omitempty"`
	Header                         map[string][]string `json:",omitempty"`
	Method                         string              `json:",omitempty"`
	TCP                            string              `json:",omitempty"`
	GRPC                           string              `json:",omitempty"`
	GRPCUseTLS                     bool                `json:",omitempty"`
	TLSServerName                  string              `json:",omitempty"`
	TLSSkipVerify                  bool                `json:",omitempty"`
	TTL                            string              `json:",omitempty"`
	Interval                       string              `json:",omitempty"`
	Timeout                        string              `json:",omitempty"`
	DeregisterCriticalServiceAfter string              `json:",omitempty"`
}

type check struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  definition
	CreateIndex uint64
	ModifyIndex uint64
}

// entry is one of /v1/health/service/NAME.
type entry struct {
	Node    node
	Service service
	Checks  []check
}

// row is one of /v1/catalog/service/NAME.
type row struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]address
	ServiceTags              []string
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceWeights           weights
	ServiceEnableTagOverride bool
	ServiceLocality          *locality `json:",omitempty"`
	CreateIndex              uint64
	ModifyIndex              uint64
}

// nodeServices is the answer of /v1/catalog/node/NODE.
type nodeServices struct {
	Node     node
	Services map[string]service
}

// nodeServiceList is the answer of /v1/catalog/node-services/NODE.
type nodeServiceList struct {
	Node     node
	Services []service
}

// agentHealth is the answer of /v1/agent/health/service/...
type agentHealth struct {
	AggregatedStatus string
	Service          service
	Checks           []check
}

// The statuses of a check.
const (
	passing     = "passing"
	warning     = "warning"
	critical    = "critical"
	maintenance = "maintenance" // only as an aggregate
)
