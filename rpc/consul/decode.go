package consul

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// registration is the body of agent/service/register, and the service in that of catalog/register.
type registration struct {
	ID                string
	Name              string
	Service           string // what the catalog calls Name
	Tags              []string
	Port              looseInt
	Ports             []servicePort
	Address           string
	SocketPath        string
	TaggedAddresses   map[string]address
	EnableTagOverride bool
	Meta              map[string]string
	Weights           *weights
	Check             *checkDefinition
	Checks            []checkDefinition
	Kind              string
	Connect           json.RawMessage
	Locality          *locality
	Namespace         string
}

// checkDefinition is a check in a registration, the body of agent/check/register, or a check in that of catalog/register.
type checkDefinition struct {
	ID, CheckID    string
	Name, Notes    string
	Status, Output string
	Node           string
	ServiceID      string
	Namespace      string

	TTL                     looseSpan
	HTTP, Method, Body      string
	Header                  map[string][]string
	DisableRedirects        bool
	TCP                     string
	TCPUseTLS               bool
	GRPC                    string
	GRPCUseTLS              bool
	TLSServerName           string
	TLSSkipVerify           bool
	UDP, H2PING, OSService  string
	DockerContainerID       string
	Script                  string
	Args, ScriptArgs        []string
	AliasNode, AliasService string

	Interval, Timeout              looseSpan
	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int
	DeregisterCriticalServiceAfter looseSpan

	Definition *checkDefinition // what the catalog has of how it is made
}

// catalogRegistration is the body of catalog/register.
type catalogRegistration struct {
	ID, Node, Address, Datacenter string
	TaggedAddresses               map[string]string
	NodeMeta                      map[string]string
	Service                       *registration
	Check                         *checkDefinition
	Checks                        []checkDefinition
	Namespace                     string
}

// catalogDeregistration is the body of catalog/deregister.
type catalogDeregistration struct {
	Node, ServiceID, CheckID, Datacenter, Namespace string
}

// looseInt is a number, also one in quotes.
type looseInt struct {
	n     int
	wrong string // what stood there, if it is none
}

// UnmarshalJSON implements json.Unmarshaler. What is wrong is told later, with the name of the field.
func (i *looseInt) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "" || text == "null" {
		*i = looseInt{}
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	*i = looseInt{n: int(n)}
	if err != nil {
		*i = looseInt{wrong: cut(text)}
	}
	return nil
}

// looseSpan is a duration such as "10s", or a number of nanoseconds.
type looseSpan struct {
	time.Duration
	wrong string // what stood there, if it is none
}

// UnmarshalJSON implements json.Unmarshaler. What is wrong is told later, with the name of the field.
func (d *looseSpan) UnmarshalJSON(b []byte) error {
	*d = looseSpan{}
	text := strings.Trim(string(b), `"`)
	if text == "" || text == "null" {
		return nil
	}
	v, err := time.ParseDuration(text)
	if n, intErr := strconv.ParseInt(text, 10, 64); intErr == nil {
		v, err = time.Duration(n), nil
	}
	if d.Duration = v; err != nil {
		d.wrong = cut(text)
	}
	return nil
}

// readBody decodes a body of any spelling: keys in any case of letters, with underscores as in configuration files, and wrapped in
// an object of one key as there.
func readBody(w *answer, a *request, wrapper string, into any) error {
	body, err := readAll(w, a)
	if err != nil {
		return err
	}
	return decodeBody(body, wrapper, into)
}

// readAll reads a body as it is.
func readAll(w *answer, a *request) ([]byte, error) {
	body, err := io.ReadAll(a.Body)
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // What follows is that the client may go.
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &failure{http.StatusRequestEntityTooLarge, fmt.Sprintf("Request body too large, max size: %d bytes", tooLarge.Limit)}
	case err != nil:
		return nil, badRequest("Request decode failed: %v", err)
	}
	return body, nil
}

func decodeBody(body []byte, wrapper string, into any) error {
	tree, err := decodeTree(body)
	if err != nil {
		return err
	}
	object, ok := tree.(map[string]any)
	if !ok {
		return badRequest("Request decode failed: the body must be a JSON object")
	}
	if inner := unwrap(object, wrapper); inner != nil {
		object = inner
	}
	return unfold(object, into)
}

// decodeList is decodeBody for a list.
func decodeList(body []byte, into any) error {
	tree, err := decodeTree(body)
	if err != nil {
		return err
	}
	list, ok := tree.([]any)
	if !ok {
		return badRequest("Request decode failed: the body must be a JSON list")
	}
	return unfold(list, into)
}

func decodeTree(body []byte) (tree any, err error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err = d.Decode(&tree); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	if d.More() {
		return nil, badRequest("Request decode failed: something follows the object")
	}
	return tree, nil
}

// unfold decodes what a body has.
func unfold(tree, into any) error {
	plain, err := json.Marshal(fold(tree))
	if err == nil {
		err = json.Unmarshal(plain, into)
	}
	if err != nil {
		return badRequest("Request decode failed: %s", fieldOf(err))
	}
	return nil
}

// fieldOf is the text of an error of decoding, with the field that it is about first.
func fieldOf(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("%s: must be a %s, is a %s", wrong.Field, wrong.Type, wrong.Value)
	}
	return err.Error()
}

// unwrap returns the object inside {"service": {...}}, nil if it is none.
func unwrap(object map[string]any, wrapper string) map[string]any {
	if wrapper == "" || len(object) != 1 {
		return nil
	}
	for key, value := range object {
		if inner, ok := value.(map[string]any); ok && strings.EqualFold(key, wrapper) {
			return inner
		}
	}
	return nil
}

// fold removes the underscores from keys, but not from those that are data, and gives every key one case: of two spellings of one
// key the one counts that is last in order.
func fold(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			switch folded := strings.ToLower(strings.ReplaceAll(key, "_", "")); folded {
			case "meta", "nodemeta", "header", "taggedaddresses":
				out[folded] = v[key]
			default:
				out[folded] = fold(v[key])
			}
		}
		return out
	case []any:
		for i := range v {
			v[i] = fold(v[i])
		}
	}
	return v
}
