"""A small Kubernetes API server for laptops and tests: loopback only, no authentication, no TLS. Never a cluster's.

Generic: it knows custom kinds only through the CustomResourceDefinitions it is given, and the built-in ones as plain
stored objects. What stock `kubectl` and client libraries rely on is here and held by `test_kube_contract.py`,
the same suite that a real `kube-apiserver` passes; what only a cluster needs (RBAC, kubelets) is not.

    server      started and stopped, in a thread      ─┐
    application HTTP                                   │ shells
    watching    pages and streams of events            │
    storage     objects, resourceVersions, history    ─┘
    requests    a request as a value
    registry    what create, update, patch, delete do to an object
    decoding    an object of its kind from what arrives              validation  whether it may be stored
    collector   ownerReferences, namespaces and CRDs that are on their way out
    kinds       which kinds there are       builtins    those that are always there
    metadata    the rules of every kind     special     and those of Namespaces, CRDs, Secrets
    schema      defaults, pruning, validation           rules       CEL
    patches     merge, JSON, strategic patches          fields      server-side apply, managedFields
    selectors   labels and fields           tables      what `kubectl get` prints
    openapi, discovery, protobuf            what `kubectl explain`, `api-resources` and old and new kubectl read
    admission   what webhooks are asked of one request, and have answered      matching   which are asked, and what
    webhooks    asks them                         webhook_configurations    the objects that name them
    errors      every error as a `Status`   jsonpath    where columns look
"""
