"""A fuzz table of realistic mistakes: all are caught, and nearly all name what was meant."""

import contextlib
import io

import pytest

from lmech import cli

ADAM = "optimizer=adam"

# What the user typed, and what was meant (None: caught, but there is no one right answer).
# The table came before the hints: a case that fails stays in it.
MISTAKES: list[tuple[str, str | None]] = [
    # a letter lost
    ("optimizer.learning_rat=0.1", "optimizer.learning_rate"),
    ("optimizer.learnin_rate=0.1", "optimizer.learning_rate"),
    ("model.widh=8", "model.width"),
    ("model.dept=2", "model.depth"),
    ("stps=10", "steps"),
    ("sed=1", "seed"),
    ("batch_siz=10", "batch_size"),
    ("precision.dtyp=float64", "precision.dtype"),
    ("observables.sharpnes.every=10", "observables.sharpness.every"),
    # letters swapped, doubled or wrong
    ("modle.width=8", "model.width"),
    ("modle=mlp", "model"),
    ("optimzier.learning_rate=0.1", "optimizer.learning_rate"),
    ("model.wdith=8", "model.width"),
    ("setps=10", "steps"),
    ("sede=1", "seed"),
    ("dataest=mnist", "dataset"),
    ("model.widthh=8", "model.width"),
    ("optimizer.learning__rate=0.1", "optimizer.learning_rate"),
    ("optimizer.momentun=0.9", "optimizer.momentum"),
    ("optimizer.nestrov=true", "optimizer.nesterov"),
    ("optimiser.learning_rate=0.1", "optimizer.learning_rate"),
    ("dataset.standardise=pixel", "dataset.standardize"),
    ("excution.mode=map", "execution.mode"),
    # the wrong section, or none
    ("model.learning_rate=0.1", "optimizer.learning_rate"),
    ("learning_rate=0.1", "optimizer.learning_rate"),
    ("optimizer.batch_size=32", "batch_size"),
    ("dataset.batch_size=32", "batch_size"),
    ("model.seed=1", "seed"),
    ("training.steps=100", "steps"),
    ("width=64", "model.width"),
    ("depth=3", "model.depth"),
    ("activation=relu", "model.activation"),
    ("train_size=100", "dataset.train_size"),
    ("dtype=float64", "precision.dtype"),
    ("mode=vmap", "execution.mode"),
    ("warmup=10", "schedule.warmup"),
    ("momentum=0.9", "optimizer.momentum"),
    ("stop_train_loss=0.1", "stop.train_loss"),
    ("sharpness.every=10", "observables.sharpness.every"),
    ("observables.every=10", None),
    ("train_loss.every=10", "observables.train_loss.every"),
    ("init_seed=3", "seeds.init"),
    # the wrong case
    ("Seed=1", "seed"),
    ("Seeds.init=0", "seeds.init"),
    ("Model.width=8", "model.width"),
    ("optimizer.Learning_Rate=0.1", "optimizer.learning_rate"),
    ("optimizer.learningRate=0.1", "optimizer.learning_rate"),
    ("OPTIMIZER=adam", "optimizer"),
    ("model=MLP", "mlp"),
    ("dataset=MNIST", "mnist"),
    ("optimizer=Adam", "adam"),
    ("optimizer=AdamW", "adamw"),
    ("loss=MSE", "mse"),
    ("parametrization=SP", "sp"),
    ("model.activation=ReLU", "relu"),
    ("execution.mode=Vmap", "vmap"),
    # another word for it
    ("lr=0.1", "optimizer.learning_rate"),
    ("optimizer.lr=0.1", "optimizer.learning_rate"),
    ("eta=0.1", "optimizer.learning_rate"),
    (f"{ADAM}w wd=0.1", "optimizer.weight_decay"),
    (f"{ADAM}w optimizer.wd=0.1", "optimizer.weight_decay"),
    ("bs=10", "batch_size"),
    ("batchsize=10", "batch_size"),
    ("batch=10", "batch_size"),
    ("mom=0.9", "optimizer.momentum"),
    ("optimizer.mom=0.9", "optimizer.momentum"),
    ("model.act=relu", "model.activation"),
    ("model.layers=3", "model.depth"),
    (f"{ADAM} optimizer.beta1=0.9", "optimizer.b1"),
    (f"{ADAM} optimizer.epsilon=0.1", "optimizer.eps"),
    ("num_steps=10", "steps"),
    ("max_steps=10", "steps"),
    ("random_seed=3", "seed"),
    ("epochs=3", None),
    # plural and singular
    ("step=100", "steps"),
    ("seeds=3", "seed"),
    ("models=mlp", "model"),
    ("datasets=mnist", "dataset"),
    ("optimizers=adam", "optimizer"),
    ("observable=[loss]", "observables"),
    ("losses=mse", "loss"),
    ("seeds.inits=0", "seeds.init"),
    ("observables=[losses]", "loss"),
    # no such group
    ("optimiser=adam", "optimizer"),
    ("scheduler=cosine", "schedule"),
    ("data=mnist", "dataset"),
    ("optim=adam", "optimizer"),
    ("net=mlp", None),
    ("task=digits", None),
    # no such option
    ("model=mpl", "mlp"),
    ("dataset=cifar", "cifar10"),
    ("dataset=fashion", "fashion_mnist"),
    ("dataset=fashionmnist", "fashion_mnist"),
    ("dataset=digit", "digits"),
    ("optimizer=adm", "adam"),
    ("optimizer=momentm", "momentum"),
    ("optimizer=lbfgs", None),
    ("observables=[loss,sharpnes]", "sharpness"),
    ("observables=[hessian]", None),
    ("schedule=cos", "cosine"),
    ("schedule=consine", "cosine"),
    ("loss=ce", "cross_entropy"),
    ("loss=crossentropy", "cross_entropy"),
    ("loss=xent", "cross_entropy"),
    ("precision=fp64", "float64"),
    ("precision=f64", "float64"),
    ("logger=consol", "console"),
    ("logger=mlflow", None),
    ("experiment=eos", "edge_of_stability"),
    ("experiment=edge_of_stabilty", "edge_of_stability"),
    # no such value
    ("model.activation=relo", "relu"),
    ("model.activation=tahn", "tanh"),
    ("precision.dtype=float46", "float64"),
    ("dataset.standardize=pixels", "pixel"),
    ("observables.sharpness.matrix=hesian", "hessian"),
    ("observables.sharpness.end=larges", "largest"),
    ("model.bias=maybe", None),
    # the wrong type
    ("steps=ten", None),
    ("steps=1.5", None),
    ("steps=", None),
    ("seed=one", None),
    ("model.width=wide", None),
    ("model.width=[8,16]", None),
    ("optimizer.learning_rate=fast", None),
    ("schedule.warmup=half", None),
    ("batch_size=full", None),
    # out of range
    ("steps=-1", None),
    ("seed=-1", None),
    ("model.width=0", None),
    ("optimizer.learning_rate=-0.1", None),
    ("optimizer.momentum=1.0", None),
    ("stop.train_accuracy=2", None),
    ("execution.chunk=0", None),
    ("observables.sharpness.every=0", None),
    ("dataset.train_size=5000", None),
    # the grammar
    ("--seed=1", "seed"),
    ("--lr=0.1", "optimizer.learning_rate"),
    ("steps:100", None),
    ("steps=[1", None),
    ("seed=0,1", None),
    ("-m seed=rnage(3)", None),
    ("-m optimizer.learning_rate=logspace(1,2,3)", "geomspace"),
    ("-m seed=0,1 optimizer.lr=0.1,0.2", "optimizer.learning_rate"),
    # commands
    ("reprodce edge_of_stability", "reproduce"),
    ("colect outputs", "collect"),
    ("Plan seed=1", "plan"),
    ("list optimisers", "optimizer"),
    ("reproduce eos", "edge_of_stability"),
    ("reproduce edge_of_stability --scale papr", "paper"),
    ("reproduce edge_of_stability sed=1", "seed"),
    # written when the hints were done, which no longer changed
    ("optmizer=sgd", "optimizer"),
    ("optimizer.larning_rate=1", "optimizer.learning_rate"),
    ("optimizer.learning-rate=1", "optimizer.learning_rate"),
    ("LR=1", "optimizer.learning_rate"),
    ("model.hidden=3", "model.width"),
    ("model.num_layers=3", "model.depth"),
    ("n_layers=3", "model.depth"),
    ("model.activaton=relu", "model.activation"),
    ("model.activations=relu", "model.activation"),
    ("model.nonlinearity=relu", "model.activation"),
    ("train_accuracy=0.9", "stop.train_accuracy"),
    ("stop.accuracy=0.9", "stop.train_accuracy"),
    ("chunk=3", "execution.chunk"),
    ("saveevery=3", "execution.save_every"),
    ("execution.saveevery=3", "execution.save_every"),
    ("matmul=high", "precision.matmul"),
    ("precision.matmull=high", "precision.matmul"),
    ("precision.matmul=hi", "high"),
    ("observables=[acuracy]", "accuracy"),
    ("observables=[accuracies]", "accuracy"),
    ("observables=[NTK]", "ntk"),
    ("observables=[weight]", "weights"),
    ("observables=[gradientflow]", "gradient_flow"),
    ("observables=[gns]", None),
    ("observables.sharpness.K=3", "observables.sharpness.k"),
    ("observables.train_loss.evry=3", "observables.train_loss.every"),
    ("train_loss.evry=3", "observables.train_loss.every"),
    ("optimizer=rms", "rmsprop"),
    ("optimizer=rmsProp", "rmsprop"),
    ("optimizer=Nesterov", "nesterov"),
    ("optimizer=gradient_descent", None),
    ("optimizer=adma", "adam"),
    ("schedule=constnt", "constant"),
    ("schedule=Linear", "linear"),
    ("schedule.warmpu=3", "schedule.warmup"),
    ("schedule.warm_up=3", "schedule.warmup"),
    ("dataset=cifar-10", "cifar10"),
    ("dataset=CIFAR10", "cifar10"),
    ("dataset=fmnist", "fashion_mnist"),
    ("dataset=chebychev", "chebyshev"),
    ("dataset.trainsize=10", "dataset.train_size"),
    ("dataset.n_train=10", None),
    ("dataset.flaten=true", "dataset.flatten"),
    ("loss=cross-entropy", "cross_entropy"),
    ("loss=nll", None),
    ("model=convnet", None),
    ("model=mlps", "mlp"),
    ("out=here", "output"),
    ("outputs=here", "output"),
    ("nme=x", "name"),
    ("seeds.batch=3", "seeds.batches"),
    ("seeds.Init=3", "seeds.init"),
    ("seed.init=3", "seeds.init"),
    ("micro_batch=3", "microbatch"),
    ("microbatch_size=3", "microbatch"),
    ("execution.mode=vamp", "vmap"),
    ("execution.mod=map", "execution.mode"),
    ("optimizer=adam optimizer.b_1=0.3", "optimizer.b1"),
    ("optimizer=adam optimizer.beta2=0.3", "optimizer.b2"),
    ("optimizer=adamw weightdecay=0.3", "optimizer.weight_decay"),
    ("optimizer=adamw decay=0.3", "optimizer.weight_decay"),
    ("logger=tensorbord", "tensorboard"),
    ("parametrization=muP", "mup"),
    ("lists", "list"),
    ("pln seed=1", "plan"),
    ("verfy", "verify"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the command line answers to each: exit code, standard error, and what it left."""
    from lmech import running

    answers = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run_sweep", lambda *_: pytest.fail("it was taken for a run"))
        folder = tmp_path_factory.mktemp("mistakes")
        patch.chdir(folder)
        for words, _ in MISTAKES:
            error = io.StringIO()
            with contextlib.redirect_stderr(error):
                code = cli.main(words.split())
            answers[words] = (code, error.getvalue(), list(folder.iterdir()))
    return answers


@pytest.mark.parametrize("words", [words for words, _ in MISTAKES])
def test_a_mistake_is_one_line_before_anything_runs_and_never_suggests_a_plus(words, told):
    code, error, left = told[words]
    assert code == 2
    assert error.count("\n") == 1
    assert "+" not in error
    assert not left


def test_nine_in_ten_mistakes_with_a_right_answer_get_it(told):
    meant = {words: right for words, right in MISTAKES if right}
    wrong = {w: told[w][1] for w in meant if f"did you mean '{meant[w]}'?" not in told[w][1]}
    assert len(meant) >= 100
    assert len(wrong) <= len(meant) / 10, wrong
