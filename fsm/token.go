package fsm

import (
	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// SecretHashBytes is the length of the hash of a token's secret: SHA-256.
const SecretHashBytes = 32

// Token is a secret that stands for an identity. Only the hash of the secret is known. It never changes.
type Token struct {
	// ID is public: what logs and lists call it.
	ID string
	// Description is for people.
	Description string
	// Identity is that of whoever has the secret.
	Identity string
	// ExpiresUnixMs is when it ends, in milliseconds since the Unix epoch. 0: never.
	ExpiresUnixMs int64
	// CreateRevision is the revision that created it.
	CreateRevision uint64
	// CreatedUnixMs is when, by the log time.
	CreatedUnixMs int64
	// CreatedBy is the identity that created it, empty for the cluster itself.
	CreatedBy string
	// SecretHash is the SHA-256 of the secret.
	SecretHash [SecretHashBytes]byte
}

// Proto returns the token as a message, without the hash of its secret.
func (t Token) Proto() *registryv1.Token {
	return &registryv1.Token{
		Id: t.ID, Description: t.Description, Identity: t.Identity, ExpiresUnixMs: t.ExpiresUnixMs,
		CreateRevision: t.CreateRevision, CreatedUnixMs: t.CreatedUnixMs, CreatedBy: t.CreatedBy,
	}
}

// endedBy reports whether the token has ended at a time.
func (t *Token) endedBy(unixMs int64) bool { return t.ExpiresUnixMs != 0 && t.ExpiresUnixMs <= unixMs }

// append encodes the token as a raftlogv1.TokenRecord.
func (t *Token) append(b []byte) []byte {
	var inner []byte
	inner = appendString(inner, 1, t.ID)
	inner = appendString(inner, 2, t.Description)
	inner = appendString(inner, 3, t.Identity)
	inner = appendUint(inner, 4, uint64(t.ExpiresUnixMs))
	inner = appendUint(inner, 5, t.CreateRevision)
	inner = appendUint(inner, 6, uint64(t.CreatedUnixMs))
	inner = appendString(inner, 7, t.CreatedBy)
	b = appendBytes(b, 1, inner)
	return appendBytes(b, 2, t.SecretHash[:])
}

// newToken makes a token of an order, or names what is malformed.
func newToken(cmd *raftlogv1.CreateToken, identity string) (made *Token, malformed string) {
	from := cmd.GetToken()
	switch {
	case !validName(from.GetId()):
		return nil, "id"
	case len(from.GetDescription()) > MaxDescriptionBytes:
		return nil, "description"
	case !validName(identity):
		return nil, "identity"
	case from.GetExpiresUnixMs() < 0:
		return nil, "expires_unix_ms"
	case len(cmd.GetSecretHash()) != SecretHashBytes:
		return nil, "secret_hash"
	}
	return &Token{
		ID: from.GetId(), Description: from.GetDescription(), Identity: identity, ExpiresUnixMs: from.GetExpiresUnixMs(),
		SecretHash: [SecretHashBytes]byte(cmd.GetSecretHash()),
	}, ""
}

// createToken creates a token. Creating the same token again changes nothing, so that a proposal may come twice.
func (t *txn) createToken(cmd *raftlogv1.CreateToken) Outcome {
	next, malformed := newToken(cmd, cmd.GetToken().GetIdentity())
	if malformed != "" {
		return refuse(raftlogv1.Code_CODE_INVALID, malformed)
	}
	if old, ok := t.st.Token(next.ID); ok {
		if !sameOrder(&old, next) {
			return refuse(raftlogv1.Code_CODE_ALREADY_EXISTS, next.ID)
		}
		return Outcome{ID: next.ID}
	}
	if t.st.rules().tokens.len() >= MaxTokens {
		return refuse(raftlogv1.Code_CODE_LIMIT, "tokens")
	}
	t.putToken(next)
	return Outcome{ID: next.ID}
}

// sameOrder reports whether two tokens were ordered alike.
func sameOrder(a, b *Token) bool {
	return a.Description == b.Description && a.Identity == b.Identity && a.ExpiresUnixMs == b.ExpiresUnixMs &&
		a.SecretHash == b.SecretHash
}

// putToken puts a new token into the state.
func (t *txn) putToken(next *Token) {
	next.CreatedBy, _ = t.st.Identity(string(t.actor))
	a := t.changeAccess(TokenCredential(next.ID), true, nil)
	next.CreateRevision, next.CreatedUnixMs = a.record.revision, t.st.time
	t.scratch = next.append(t.scratch[:0])
	t.addSum(tableTokens, t.scratch)
	a.tokens.set(t.mark, next.ID, next)
}

// deleteToken deletes a token. One that is not there is deleted already.
func (t *txn) deleteToken(cmd *raftlogv1.DeleteToken) Outcome {
	old, ok := t.st.rules().tokens.get(cmd.GetId())
	if !ok {
		return Outcome{}
	}
	a := t.changeAccess(TokenCredential(old.ID), false, nil)
	t.scratch = old.append(t.scratch[:0])
	t.subSum(tableTokens, t.scratch)
	a.tokens.delete(t.mark, old.ID)
	return Outcome{}
}
