%% Calls of the node's functions that look like local ones.
%%
%% erpc tells apart how a remote function ended, and wraps it; here it is unwrapped, so
%% that existing code which matches on exits and errors of erllama needs no change:
%%
%%   remote           erpc raises                        the caller sees
%%   value V          -                                  V
%%   throw(T)         throw:T                            throw:T
%%   exit(R)          exit:{exception, R}                exit:R
%%   error(R)         error:{exception, R, Stack}        error:R with that stack
%%   lost node        error:{erpc, noconnection}         exit:{nodedown, Node}
%%   not started      -                                  exit:{noproc, {M, F, Args}}
%%
%% There is no time limit, as there is none in the original.  When the calling process
%% ends, the node sees it and cancels what runs for it.
-module(erllama_call).

-export([call/2, call/3, cast/2, linked/3]).

%% Call a function of erllama.
-spec call(atom(), [term()]) -> term().
call(Function, Args) ->
    call(erllama, Function, Args).

-spec call(module(), atom(), [term()]) -> term().
call(Module, Function, Args) ->
    Node = target(Module, Function, Args),
    try
        erpc:call(Node, Module, Function, Args, infinity)
    catch
        exit:{exception, Reason} ->
            exit(Reason);
        exit:{signal, Reason} ->
            exit(Reason);
        error:{exception, Reason, Stack} ->
            erlang:raise(error, Reason, Stack);
        error:{erpc, noconnection} ->
            exit({nodedown, Node});
        error:{erpc, Reason} ->
            exit({Reason, {Module, Function, Args}})
    end.

%% Ask erllama for something without waiting for it; a lost node is no error.
-spec cast(atom(), [term()]) -> ok.
cast(Function, Args) ->
    erpc:cast(target(erllama, Function, Args), erllama, Function, Args).

%% Call a start_link: what it started is linked to the caller, as a supervisor expects.
-spec linked(module(), atom(), [term()]) -> term().
linked(Module, Function, Args) ->
    case call(Module, Function, Args) of
        {ok, Pid} ->
            true = link(Pid),
            {ok, Pid};
        Refused ->
            Refused
    end.

target(Module, Function, Args) ->
    case erllama_link:target() of
        undefined -> exit({noproc, {Module, Function, Args}});
        Node -> Node
    end.
