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
%%   not started      -                                  exit:{noproc, {erllama, F, Args}}
%%
%% There is no time limit, as there is none in the original.  When the calling process
%% ends, the node sees it and cancels what runs for it.
-module(erllama_call).

-export([call/2, cast/2]).

-spec call(atom(), [term()]) -> term().
call(Function, Args) ->
    Node = target(Function, Args),
    try
        erpc:call(Node, erllama, Function, Args, infinity)
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
            exit({Reason, {erllama, Function, Args}})
    end.

%% Ask for something without waiting for it; a lost node is no error.
-spec cast(atom(), [term()]) -> ok.
cast(Function, Args) ->
    erpc:cast(target(Function, Args), erllama, Function, Args).

target(Function, Args) ->
    case erllama_link:target() of
        undefined -> exit({noproc, {erllama, Function, Args}});
        Node -> Node
    end.
