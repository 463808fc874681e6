package consul

const (
	kvGet      = "/regd.api.v1.KVService/GetKey"
	kvPut      = "/regd.api.v1.KVService/PutKey"
	kvDelete   = "/regd.api.v1.KVService/DeleteKey"
	kvTransact = "/regd.api.v1.KVService/Transact"
)
