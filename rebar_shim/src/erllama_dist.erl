%% What has to do with Erlang distribution: names, starting it, connecting, and saying
%% why that does not work.
-module(erllama_dist).

-export([target/1, start/1, connect/1, why_not/1, how_to_start/1]).

%% Return the node that a setting means.  Without a host part it is on this machine.
-spec target(term()) -> {ok, node()} | {error, term()}.
target(Setting) ->
    case text(Setting) of
        {ok, Text} ->
            case string:split(Text, "@", all) of
                [[_ | _]] -> other(Text ++ "@" ++ this_host());
                [[_ | _], [_ | _]] -> other(Text);
                _ -> {error, {bad_node, Setting}}
            end;
        error ->
            {error, {bad_node, Setting}}
    end.

%% Make sure that this VM can connect to Target.
%%
%% A VM that was started without -sname or -name becomes a hidden node with a name of
%% its own, that listens nowhere and needs no epmd.  It stays one until the VM ends.
-spec start(node()) -> ok | {error, term()}.
start(Target) ->
    Domain = domain(Target),
    case is_alive() of
        true ->
            case domain(node()) of
                Domain -> ok;
                _ -> {error, {name_domains_differ, node(), Target}}
            end;
        false ->
            Options = #{name_domain => Domain, hidden => true, dist_listen => false},
            case net_kernel:start(own_name(Domain), Options) of
                {ok, _} -> ok;
                {error, {already_started, _}} -> ok;
                {error, Reason} -> {error, {no_distribution, cause(Reason)}}
            end
    end.

%% The report of a failed supervisor fills a screen; what matters is the child's reason.
cause({{shutdown, {failed_to_start_child, Child, Reason}}, _Spec}) ->
    {Child, cause(Reason)};
cause({shutdown, {failed_to_start_child, Child, Reason}}) ->
    {Child, cause(Reason)};
cause({Reason, [{Module, Function, _, _} | _]}) when is_atom(Module), is_atom(Function) ->
    cause(Reason);
cause(Reason) ->
    case io_lib:printable_unicode_list(Reason) of
        true -> unicode:characters_to_binary(Reason);
        false -> Reason
    end.

-spec connect(node()) -> boolean().
connect(Target) ->
    %% Hidden: models should not join the cluster, nor see each other through us.
    net_kernel:hidden_connect_node(Target) =:= true.

%% Say in words why a node cannot be reached, and what to do.
-spec why_not(node()) -> iodata().
why_not(Target) ->
    [Name, Host] = string:split(atom_to_list(Target), "@"),
    case net_adm:names(list_to_atom(Host)) of
        {ok, Names} ->
            case lists:keymember(Name, 1, Names) of
                true ->
                    "it is there but does not take this node in: set the same cookie "
                    "on both sides (env cookie of erllama)";
                false ->
                    ["no node of that name runs on ", Host, ": ", how_to_start(Target)]
            end;
        {error, _} ->
            ["no epmd answers on ", Host, ", so no node runs there: ", how_to_start(Target)]
    end.

-spec how_to_start(node()) -> iodata().
how_to_start(Target) ->
    ["start it with erllama node --name ", atom_to_list(Target)].

%% -- names -----------------------------------------------------------------------------

text(Atom) when is_atom(Atom), Atom =/= undefined, Atom =/= nil ->
    {ok, atom_to_list(Atom)};
text(Binary) when is_binary(Binary) ->
    {ok, unicode:characters_to_list(Binary)};
text(List) when is_list(List) ->
    case io_lib:printable_unicode_list(List) of
        true -> {ok, List};
        false -> error
    end;
text(_) ->
    error.

other(Text) ->
    case list_to_atom(Text) of
        %% Every call would call itself.
        Node when Node =:= node() -> {error, {own_node, Node}};
        Node -> {ok, Node}
    end.

this_host() ->
    case is_alive() of
        true ->
            [_, Host] = string:split(atom_to_list(node()), "@"),
            Host;
        false ->
            {ok, Host} = inet:gethostname(),
            Host
    end.

domain(Node) ->
    [_, Host] = string:split(atom_to_list(Node), "@"),
    case lists:member($., Host) orelse lists:member($:, Host) of
        true -> longnames;
        false -> shortnames
    end.

own_name(Domain) ->
    Unique = binary_to_list(binary:encode_hex(rand:bytes(6))),
    Name = lists:append(["erllama_", os:getpid(), "_", string:lowercase(Unique)]),
    case Domain of
        shortnames -> list_to_atom(Name);
        longnames -> list_to_atom(Name ++ "@" ++ long_host())
    end.

%% Nobody connects to us, so any host part will do where this machine has no full name.
long_host() ->
    Host = net_adm:localhost(),
    case lists:member($., Host) of
        true -> Host;
        false -> "127.0.0.1"
    end.
