package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Access decides who may do what: identities have policies by their grants, and tokens and client certificates stand for
// identities. All but WhoAmI and the first Bootstrap take the permission to administer, once access control is on. Errors match
// ErrUnauthenticated and ErrPermissionDenied. Its methods are safe for concurrent use.
type Access struct{ c *Client }

// Access returns the calls of access control.
func (c *Client) Access() *Access { return &Access{c: c} }

func accessService(conn grpc.ClientConnInterface) apiv1.AccessServiceClient {
	return apiv1.NewAccessServiceClient(conn)
}

// Bootstrap creates the first token, of the identity "operator" with the policy of that name, and switches access control on.
// It works once: later it fails with an error that matches ErrBootstrapped and says what a further time takes, for which
// resets must be the number of times before. The token is returned by this call alone, nobody can be told it again.
func (a *Access) Bootstrap(ctx context.Context, resets uint64) (token string, err error) {
	secret := NewSecret()
	resp, err := write(ctx, a.c, "bootstrap access control", func(id *apiv1.RequestID) send[*apiv1.BootstrapResponse] {
		req := &apiv1.BootstrapRequest{RequestId: id, SecretHash: secret.Hash(), Resets: resets}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.BootstrapResponse, error) {
			return accessService(conn).Bootstrap(ctx, req, opts...)
		}
	})
	if err != nil {
		return "", err
	}
	return secret.Token(resp.GetToken().GetId()), nil
}

// SetEnforcement switches access control on or off. While it is off everybody may do everything.
func (a *Access) SetEnforcement(ctx context.Context, enforced bool) (changed bool, err error) {
	resp, err := write(ctx, a.c, "set enforcement", func(id *apiv1.RequestID) send[*apiv1.SetEnforcementResponse] {
		req := &apiv1.SetEnforcementRequest{RequestId: id, Enforced: enforced}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.SetEnforcementResponse, error) {
			return accessService(conn).SetEnforcement(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// PutPolicy creates or replaces a policy. It holds at once, also for open watches.
func (a *Access) PutPolicy(ctx context.Context, policy *registryv1.Policy) (changed bool, err error) {
	resp, err := write(ctx, a.c, "put policy "+policy.GetName(), func(id *apiv1.RequestID) send[*apiv1.PutPolicyResponse] {
		req := &apiv1.PutPolicyRequest{RequestId: id, Policy: policy}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.PutPolicyResponse, error) {
			return accessService(conn).PutPolicy(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// DeletePolicy deletes a policy, which is taken from all who had it.
func (a *Access) DeletePolicy(ctx context.Context, name string) (changed bool, err error) {
	resp, err := write(ctx, a.c, "delete policy "+name, func(id *apiv1.RequestID) send[*apiv1.DeletePolicyResponse] {
		req := &apiv1.DeletePolicyRequest{RequestId: id, Name: name}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.DeletePolicyResponse, error) {
			return accessService(conn).DeletePolicy(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Policies returns all policies by name, the built-in ones included.
func (a *Access) Policies(ctx context.Context) ([]*registryv1.Policy, error) {
	resp, err := read(ctx, a.c, "list policies",
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListPoliciesResponse, error) {
			return accessService(conn).ListPolicies(ctx, &apiv1.ListPoliciesRequest{}, opts...)
		})
	return resp.GetPolicies(), err
}

// TokenSpec says what token to create.
type TokenSpec struct {
	// Identity that it stands for. Required.
	Identity string
	// Description for people, at most 256 bytes.
	Description string
	// Expires is when it ends. Zero: never.
	Expires time.Time
}

// CreateToken creates a token. It is returned by this call alone: the registry has only a hash of its secret.
func (a *Access) CreateToken(ctx context.Context, spec TokenSpec) (token string, info *registryv1.Token, err error) {
	secret := NewSecret()
	info, err = a.CreateTokenOf(ctx, spec, secret)
	if err != nil {
		return "", nil, err
	}
	return secret.Token(info.GetId()), info, nil
}

// CreateTokenOf is CreateToken with a secret that the caller has made.
func (a *Access) CreateTokenOf(ctx context.Context, spec TokenSpec, secret Secret) (*registryv1.Token, error) {
	if err := secret.check(); err != nil {
		return nil, err
	}
	expires := int64(0)
	if !spec.Expires.IsZero() {
		if expires = spec.Expires.UnixMilli(); expires <= 0 {
			return nil, fmt.Errorf("token of %s: expires %v: must be after 1970", spec.Identity, spec.Expires)
		}
	}
	resp, err := write(ctx, a.c, "create token of "+spec.Identity, func(id *apiv1.RequestID) send[*apiv1.CreateTokenResponse] {
		req := &apiv1.CreateTokenRequest{
			RequestId: id, Identity: spec.Identity, Description: spec.Description, ExpiresUnixMs: expires, SecretHash: secret.Hash(),
		}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.CreateTokenResponse, error) {
			return accessService(conn).CreateToken(ctx, req, opts...)
		}
	})
	return resp.GetToken(), err
}

// DeleteToken deletes a token by its id: from then on nothing is done for who shows it, on any node.
func (a *Access) DeleteToken(ctx context.Context, id string) (changed bool, err error) {
	resp, err := write(ctx, a.c, "delete token "+id, func(request *apiv1.RequestID) send[*apiv1.DeleteTokenResponse] {
		req := &apiv1.DeleteTokenRequest{RequestId: request, Id: id}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.DeleteTokenResponse, error) {
			return accessService(conn).DeleteToken(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Tokens returns all tokens by id.
func (a *Access) Tokens(ctx context.Context) ([]*registryv1.Token, error) {
	for restart := 0; ; restart++ {
		tokens, err := a.tokens(ctx)
		if !errors.Is(err, ErrPageExpired) || restart == maxListRestarts {
			return tokens, err
		}
	}
}

// maxListRestarts bounds how often a list is begun anew because its revision was no longer kept.
const maxListRestarts = 2

func (a *Access) tokens(ctx context.Context) ([]*registryv1.Token, error) {
	var all []*registryv1.Token
	for page := ""; ; {
		resp, err := read(ctx, a.c, "list tokens",
			func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListTokensResponse, error) {
				return accessService(conn).ListTokens(ctx, &apiv1.ListTokensRequest{PageToken: page}, opts...)
			})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetTokens()...)
		if page = resp.GetNextPageToken(); page == "" {
			return all, nil
		}
	}
}

// PutGrant gives policies to an identity, in place of those it had. "anonymous" is who shows neither token nor certificate.
func (a *Access) PutGrant(ctx context.Context, identity string, policies ...string) (changed bool, err error) {
	resp, err := write(ctx, a.c, "grant policies to "+identity, func(id *apiv1.RequestID) send[*apiv1.PutGrantResponse] {
		req := &apiv1.PutGrantRequest{RequestId: id, Grant: &registryv1.Grant{Identity: identity, Policies: policies}}
		return func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.PutGrantResponse, error) {
			return accessService(conn).PutGrant(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// DeleteGrant takes all policies from an identity.
func (a *Access) DeleteGrant(ctx context.Context, identity string) (changed bool, err error) {
	resp, err := write(ctx, a.c, "take the grant of "+identity, func(id *apiv1.RequestID) send[*apiv1.DeleteGrantResponse] {
		req := &apiv1.DeleteGrantRequest{RequestId: id, Identity: identity}
		return func(
			ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption,
		) (*apiv1.DeleteGrantResponse, error) {
			return accessService(conn).DeleteGrant(ctx, req, opts...)
		}
	})
	return resp.GetChanged(), err
}

// Grants returns all grants by identity.
func (a *Access) Grants(ctx context.Context) ([]*registryv1.Grant, error) {
	resp, err := read(ctx, a.c, "list grants",
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.ListGrantsResponse, error) {
			return accessService(conn).ListGrants(ctx, &apiv1.ListGrantsRequest{}, opts...)
		})
	return resp.GetGrants(), err
}

// WhoAmI returns who the registry takes this client for, and what that one may do.
func (a *Access) WhoAmI(ctx context.Context) (*apiv1.WhoAmIResponse, error) {
	return read(ctx, a.c, "find out who calls",
		func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) (*apiv1.WhoAmIResponse, error) {
			return accessService(conn).WhoAmI(ctx, &apiv1.WhoAmIRequest{}, opts...)
		})
}
